"""To the PEFT adapter format. Where each thing goes: `layout`; how an export is checked: `check`."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorax.errors import UserError
from lorax.exports.adapted import AdaptedModel
from lorax.exports.layout import Layout, expert_like, layout, target_modules
from lorax.exports.stacked import Stack, stacks_of, wrapped
from lorax.records.folder import staged

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
VERIFY_UP_TO = 1_000_000_000
"""An export of a model with more parameters is verified on request only: it forms every layer's change once."""


@torch.no_grad()
def export_peft(
    adapted: AdaptedModel,
    path: str | Path,
    rank: int | None = None,
    verify: bool | Mapping[str, Any] | None = None,
    base: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Write a plain LoRA for stock PEFT, to be loaded on the untouched base model.

    Every method here is exactly a plain LoRA of some rank: r for LoRA and LoRA-XS (B' = B M), 2r for
    recentred methods, min(m, n) for SVFT. eta is in B, so PEFT's own scaling is 1. DoRA becomes PEFT's DoRA.

    Args:
        adapted: what to export. Experts in one parameter become `target_parameters`. What else was trained travels
            along: modules whole (`modules_to_save`), tied embeddings under both names, biases of adapted layers
            (`bias="lora_only"`).
        path: the folder, made if missing; it appears when the export is verified.
        rank: no layer gets more than this; what exceeds it is cut by SVD. None: exact.
        verify: load the folder with stock PEFT and compare every layer's change and every other trained
            parameter, and on small models one output. None: up to 1e9 parameters, where PEFT is installed,
            else one line says that it was not done. The model's keyword arguments: compare the output on them.
        base: name or path of the base model for `AutoPeftModel...`; None: where the model was loaded from.
        revision: of `base` on the hub.

    Returns:
        {"bytes", "rank": {layer: rank}, "error": {layer: ||left out||_F / ||update||_F}}; left out is what was
        cut, and under fold the rounding of the stored weight.

    Raises:
        UserError: rank below 1; something trained that PEFT's format cannot hold; a folder that cannot be
            written, or that stock PEFT computes differently from this model. No folder is left then.
    """
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise UserError(f"rank={rank!r}: a whole number of at least 1 is needed")
    lengths = _lengths(adapted, rank)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    errors, inexact = {}, {}
    for name, layer in adapted.layers.items():
        B, A, errors[name] = layer.B, layer.A, 0.0
        if rank is not None and A.shape[0] > rank:
            B, A, errors[name] = truncate(B, A, rank)
        if layer.rounded:
            change = layer.delta().double()  # with the rounding of W_fz, which no adapter on W0 has
            left, size = float((change - B.double() @ A.double()).norm()), float(change.norm())
            errors[name] = left / max(size, 1e-30) if left > 1e-6 * size else 0.0
        inexact[name] = B @ A if errors[name] > 0 else None
        pairs[name] = (_stored(B), _stored(A))
    checked = _wanted(adapted, verify)
    with adapted.as_base():
        where = layout(adapted)
        stacks = stacks_of(adapted)
        experts = expert_like(adapted.model, pairs)
        r = _common(pairs, [*experts, *(name for stack in stacks.values() for name in stack.experts.values())])
        config = _config(adapted, pairs, experts, stacks, r, where, base) | ({"use_dora": True} if lengths else {})
        config |= {} if revision is None else {"revision": revision}
    with staged(path, last=[CONFIG]) as folder:
        tensors = _tensors(pairs, experts, stacks, r)
        tensors |= {f"{wrapped(name, stacks)}.lora_magnitude_vector": length for name, length in lengths.items()}
        tensors |= {wrapped(name, stacks): tensor for name, tensor in where.tensors().items()}
        _write(folder, config, {f"base_model.model.{name}": tensor for name, tensor in tensors.items()})
        if checked:
            from lorax.exports.check import check_export

            check_export(adapted, folder, inexact, verify if isinstance(verify, Mapping) else None)
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] > 0:
        print(f"exported at rank {r}: relative error of the update up to {errors[worst]:.2g} ({worst})")
    size = sum((Path(path) / name).stat().st_size for name in (CONFIG, TENSORS))
    return {"bytes": size, "rank": {name: A.shape[0] for name, (_, A) in pairs.items()}, "error": errors}


def _lengths(adapted: AdaptedModel, rank: int | None) -> dict[str, Tensor]:
    """Return {layer: (m,) lengths of rows} of DoRA, which PEFT has on all layers or on none.

    Raises:
        UserError: some layers have them and some have not, an expert has them, or a rank is asked for.
    """
    lengths = {name: layer.lengths for name, layer in adapted.layers.items() if layer.lengths is not None}
    if not lengths:
        return {}
    if rank is not None:
        raise UserError(
            f"rank={rank}: the lengths of DoRA's rows belong to its factors, which cannot be cut; rank=None"
        )
    for name in adapted.layers:
        if name not in lengths or name in adapted.experts:
            raise UserError(f"cannot export {name}: PEFT has DoRA's lengths of rows on all layers or on none")
    return {name: _stored(length) for name, length in lengths.items()}


def _wanted(adapted: AdaptedModel, verify: bool | Mapping[str, Any] | None) -> bool:
    """Whether to verify; says in one line why not, unless that was asked for."""
    if verify is False:
        return False
    if importlib.util.find_spec("peft") is None:
        if verify is None:
            print("exported without verifying: peft is not installed")
            return False
        raise UserError("verify: peft is not installed (pip install peft); verify=False exports without it")
    size = sum(parameter.numel() for parameter in adapted.model.parameters())
    if verify is None and size > VERIFY_UP_TO:
        print(f"exported without verifying: {size:,} parameters, more than {VERIFY_UP_TO:,}; verify=True does it")
        return False
    return True


def _stored(tensor: Tensor) -> Tensor:
    """Return a factor as the file holds it: float32, float64 for a float64 base."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).cpu().contiguous()


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


def _tensors(
    pairs: dict[str, tuple[Tensor, Tensor]], experts: list[str], stacks: dict[str, Stack], r: int
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for stack in stacks.values():
        owner = wrapped(stack.owner, stacks)
        tensors |= {f"{owner}.{key}": tensor for key, tensor in stack.tensors(pairs, r).items()}
    stacked = {name for stack in stacks.values() for name in stack.experts.values()}
    for name, (B, A) in pairs.items():
        if name in stacked:
            continue
        if name in experts and A.shape[0] < r:  # rank_pattern does not reach parameters without a warning
            B = torch.cat([B, B.new_zeros(B.shape[0], r - B.shape[1])], 1)
            A = torch.cat([A, A.new_zeros(r - A.shape[0], A.shape[1])])
        tensors[f"{wrapped(name, stacks)}.lora_A.weight"] = A
        tensors[f"{wrapped(name, stacks)}.lora_B.weight"] = B
    return tensors


def _config(
    adapted: AdaptedModel,
    pairs: dict[str, tuple[Tensor, Tensor]],
    experts: list[str],
    stacks: dict[str, Stack],
    r: int,
    where: Layout,
    base: str | None,
) -> dict[str, Any]:
    modules = [name for name in pairs if name not in {*experts, *adapted.experts}]
    ranks = {name: pairs[name][1].shape[0] for name in modules}
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r}
    loaded_from = getattr(getattr(adapted.model, "config", None), "_name_or_path", None)
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
        "fan_in_fan_out": bool(modules) and all(adapted.layers[name].transposed for name in modules),
        "target_modules": target_modules(adapted.model, modules) if modules else [],
        "modules_to_save": where.listed or None,
    }
    if experts or stacks:
        config["target_parameters"] = [*(f"{name}.weight" for name in experts), *stacks]
    if where.tied:
        config["ensure_weight_tying"] = True
    return config


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
