"""To the PEFT adapter format.

A recentred method is exported against the untouched base in the form whose differences are
formed in the factors' precision, [B - B0, B0] [A ; A - A0]; the other one, [B, -B0] [A ; A0],
loses the update in the rounding of its file. Where each thing goes: `peft_layout`; how it is
checked: `peft_check`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.adapters import core, weights
from lorax.adapters.files.folder import staged
from lorax.adapters.files.peft_layout import Layout, expert_like, layout, target_modules
from lorax.adapters.low_rank import LowRankAdapter
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
VERIFY_UP_TO = 1_000_000_000
"""An export of a model with more parameters is verified on request only: it forms every layer's change once."""


@torch.no_grad()
def export_peft(
    adapters: Adapters,
    path: str | Path,
    rank: int | None = None,
    verify: bool | Mapping[str, Any] | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """Write a plain LoRA for stock PEFT, to be loaded on the untouched base model.

    Every method here is exactly a plain LoRA of some rank: r for LoRA and LoRA-XS (B' = B M), 2r for
    recentred methods, min(m, n) for SVFT. eta is in B, so PEFT's own scaling is 1.

    Args:
        adapters: what to export. What else was trained travels along: modules whole (`modules_to_save`), tied
            embeddings under both names, biases of adapted layers (`bias="lora_only"`).
        path: the folder, made if missing; it appears when the export is verified.
        rank: no layer gets more than this; what exceeds it is cut by SVD. None: exact.
        verify: load the folder with stock PEFT and compare every layer's change and every other trained
            parameter, and on small models one output. None: up to 1e9 parameters, where PEFT is installed,
            else one line says that it was not done. The model's keyword arguments: compare the output on them.
        base: name or path of the base model for `AutoPeftModel...`; None: where the model was loaded from.

    Returns:
        {"bytes", "rank": {layer: rank}, "error": {layer: ||left out||_F / ||update||_F}}; left out is what was
        cut, and under fold the rounding of the stored weight.

    Raises:
        UserError: rank below 1; something trained that PEFT's format cannot hold; a folder that cannot be
            written, or that stock PEFT computes differently from this model. No folder is left then.
    """
    if rank is not None and (isinstance(rank, bool) or rank < 1):
        raise UserError(f"rank={rank}: must be at least 1")
    where = layout(adapters)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    errors, inexact = {}, {}
    for name, adapter in adapters.layer_adapters().items():
        if not isinstance(adapter, LowRankAdapter):
            raise UserError(f"cannot export {name}: its adapter has no low-rank form")
        if not adapters.linear(name).kind.plain:
            raise UserError(f"cannot export {name}: PEFT's LoRA stores a layer of its kind in another shape")
        B, A = low_rank_pair(adapter)
        errors[name] = 0.0
        if rank is not None and A.shape[0] > rank:
            B, A, errors[name] = truncate(B, A, rank)
        if adapters.recenter == "fold" and adapter.shifts_base:
            change = weights.delta(
                adapters.linear(name), adapter, fold=True
            ).double()  # with the rounding of W_fz, which no adapter on W0 has
            left = float((change - B.double() @ A.double()).norm())
            errors[name] = left / max(float(change.norm()), 1e-30) if left > 1e-6 * float(change.norm()) else 0.0
        inexact[name] = B @ A if errors[name] > 0 else None
        pairs[name] = (_stored(B), _stored(A))
    checked = _wanted(adapters, verify)
    experts = expert_like(adapters.model, pairs)
    r = _common(pairs, experts)
    with staged(path, last=[CONFIG]) as folder:
        _write(folder, _config(adapters, pairs, experts, r, where, base), _tensors(pairs, experts, r) | where.tensors())
        if checked:
            from lorax.adapters.files.peft_check import check_export

            check_export(adapters, folder, inexact, verify if isinstance(verify, Mapping) else None)
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] > 0:
        print(f"exported at rank {r}: relative error of the update up to {errors[worst]:.2g} ({worst})")
    size = sum((Path(path) / name).stat().st_size for name in (CONFIG, TENSORS))
    return {"bytes": size, "rank": {name: A.shape[0] for name, (_, A) in pairs.items()}, "error": errors}


def _wanted(adapters: Adapters, verify: bool | Mapping[str, Any] | None) -> bool:
    """Whether to verify; says in one line why not, unless that was asked for."""
    if verify is False:
        return False
    if importlib.util.find_spec("peft") is None:
        if verify is None:
            print("exported without verifying: peft is not installed")
            return False
        raise UserError("verify: peft is not installed (pip install peft); verify=False exports without it")
    size = sum(parameter.numel() for parameter in adapters.model.parameters())
    if verify is None and size > VERIFY_UP_TO:
        print(f"exported without verifying: {size:,} parameters, more than {VERIFY_UP_TO:,}; verify=True does it")
        return False
    return True


def _stored(tensor: Tensor) -> Tensor:
    """Return a factor as the file holds it: float32, float64 for a float64 base."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).cpu().contiguous()


def low_rank_pair(adapter: LowRankAdapter) -> tuple[Tensor, Tensor]:
    """Return (B', A') with B' A' = W' - W0 of exact arithmetic; eta is in B'."""
    products = [(core.left_multiply(B, M), A) for B, M, A in adapter.terms(carried=adapter.shifts_base)]
    return adapter.eta * torch.cat([B for B, _ in products], 1), torch.cat([A for _, A in products])


def truncate(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the best (B', A') of a lower rank and the relative Frobenius error (Eckart-Young).

    Works on the QR factors, in float64.

    Args:
        B: (m, R).
        A: (R, n).
        rank: at most R.
    """
    Qb, Rb = torch.linalg.qr(B.double())
    Qa, Ra = torch.linalg.qr(A.double().mT)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.mT)
    root = S[:rank].sqrt()
    error = float(S[rank:].norm() / S.norm()) if S.norm() > 0 else 0.0
    low = (Qb @ U[:, :rank] * root, root[:, None] * (Vh[:rank] @ Qa.mT))
    return low[0].to(B.dtype), low[1].to(A.dtype), error


def _common(pairs: dict[str, tuple[Tensor, Tensor]], experts: list[str]) -> int:
    """Return the rank in "r": the most frequent one; layers named by parameter are filled up with zeros to it."""
    ranks = Counter(A.shape[0] for _, A in pairs.values())
    common = ranks.most_common(1)[0][0]
    return max([common, *(pairs[name][1].shape[0] for name in experts)])


def _tensors(pairs: dict[str, tuple[Tensor, Tensor]], experts: list[str], r: int) -> dict[str, Tensor]:
    tensors = {}
    for name, (B, A) in pairs.items():
        if name in experts and A.shape[0] < r:  # rank_pattern does not reach parameters without a warning
            B = torch.cat([B, B.new_zeros(B.shape[0], r - B.shape[1])], 1)
            A = torch.cat([A, A.new_zeros(r - A.shape[0], A.shape[1])])
        tensors[f"base_model.model.{name}.lora_A.weight"] = A
        tensors[f"base_model.model.{name}.lora_B.weight"] = B
    return tensors


def _config(
    adapters: Adapters,
    pairs: dict[str, tuple[Tensor, Tensor]],
    experts: list[str],
    r: int,
    where: Layout,
    base: str | None,
) -> dict[str, Any]:
    modules = [name for name in pairs if name not in set(experts)]
    ranks = {name: pairs[name][1].shape[0] for name in modules}
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r}
    loaded_from = getattr(getattr(adapters.model, "config", None), "_name_or_path", None)
    config = {
        "peft_type": "LORA",
        "task_type": where.task,
        "base_model_name_or_path": base or loaded_from or None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "lora_only" if where.biases else "none",
        "use_rslora": False,
        "fan_in_fan_out": all(adapters.linear(name).kind.transposed for name in pairs),
        "target_modules": target_modules(adapters.model, modules) if modules else [],
        "modules_to_save": where.listed or None,
    }
    if experts:
        config["target_parameters"] = [f"{name}.weight" for name in experts]
    if where.tied:
        config["ensure_weight_tying"] = True
    return config


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
