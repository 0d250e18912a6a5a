"""To the PEFT adapter format, and to a merged checkpoint.

A recentred method is exported against the untouched base in the form whose differences are
formed in the factors' precision, [B - B0, B0] [A ; A - A0]; the other one, [B, -B0] [A ; A0],
loses the update in the rounding of its file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.adapters import core
from lorax.adapters.experts.adapted import AdaptedExpert
from lorax.adapters.files.format import tensors_of
from lorax.adapters.files.peft_experts import expert_names, expert_tensors
from lorax.adapters.kinds import is_linear
from lorax.adapters.low_rank import LowRankAdapter
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters


@torch.no_grad()
def export_peft(adapters: Adapters, path: str | Path, rank: int | None = None) -> dict[str, Any]:
    """Write a plain LoRA for stock PEFT, to be loaded on the untouched base model.

    Every method here is exactly a plain LoRA of some rank: r for LoRA and LoRA-XS (B' = B M), 2r for
    recentred methods, min(m, n) for SVFT. eta is in B, so PEFT's own scaling is 1.

    Args:
        adapters: what to export; whole trained heads travel as `modules_to_save`.
        path: the folder, made if missing.
        rank: no layer gets more than this; what exceeds it is cut by SVD. None: exact.

    Returns:
        {"bytes", "rank": {layer: rank}, "error": {layer: ||cut||_F / ||update||_F}}.

    Raises:
        UserError: rank below 1.
    """
    if rank is not None and rank < 1:
        raise UserError(f"rank={rank}: must be at least 1")
    tensors: dict[str, Tensor] = {}
    ranks, errors = {}, {}
    experts: dict[str, tuple[Tensor, Tensor]] = {}
    for name, adapter in adapters.layer_adapters().items():
        if not isinstance(adapter, LowRankAdapter):
            raise UserError(f"cannot export {name}: its adapter has no low-rank form")
        layer = adapters.linear(name)
        if not layer.kind.plain and not isinstance(layer, AdaptedExpert):
            raise UserError(f"cannot export {name}: PEFT's LoRA stores a layer of its kind in another shape")
        B, A = low_rank_pair(adapter)
        errors[name] = 0.0
        if rank is not None and A.shape[0] > rank:
            B, A, errors[name] = truncate(B, A, rank)
        ranks[name] = A.shape[0]
        if isinstance(layer, AdaptedExpert):
            experts[name] = (B, A)
            continue
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.float().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.float().cpu().contiguous()
    r = _common(ranks, list(experts))
    tensors |= expert_tensors(adapters, experts, r)
    state, heads = tensors_of(adapters)
    tensors |= {f"base_model.model.{head}": state[head].cpu().contiguous() for head in heads}
    size = _write(
        Path(path), _config(adapters, {name: k for name, k in ranks.items() if name not in experts}, heads, r), tensors
    )
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] > 0:
        print(f"exported at rank {rank}: relative error of the update up to {errors[worst]:.2g} ({worst})")
    return {"bytes": size, "rank": ranks, "error": errors}


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


def _common(ranks: dict[str, int], experts: list[str]) -> int:
    """Return the file's rank: the most frequent one, and no less than an expert's, which are filled up to it."""
    return max([Counter(ranks.values()).most_common(1)[0][0], *(ranks[name] for name in experts)])


def _config(adapters: Adapters, ranks: dict[str, int], heads: list[str], common: int) -> dict[str, Any]:
    others = {f"^{re.escape(name)}": r for name, r in ranks.items() if r != common}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": getattr(getattr(adapters.model, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": bool(ranks) and all(adapters.linear(name).kind.transposed for name in ranks),
        "target_modules": _targets(adapters, list(ranks)),
        **({"target_parameters": list(parameters)} if (parameters := expert_names(adapters)) else {}),
        "modules_to_save": sorted({head.rsplit(".", 1)[0] for head in heads}) or None,
    }


def _targets(adapters: Adapters, names: list[str]) -> list[str] | str:
    """The full names; as a regular expression where PEFT's suffix rule would catch other layers too."""
    rest = {name for name, module in adapters.model.named_modules() if is_linear(module) and ".lanes." not in name}
    if any(other.endswith(f".{name}") for name in names for other in (rest | set(names)) - {name}):
        return "|".join(re.escape(name) for name in names)
    return names


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    from safetensors.torch import save_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return sum((folder / name).stat().st_size for name in ("adapter_model.safetensors", "adapter_config.json"))


def export_merged(adapters: Adapters, path: str | Path) -> None:
    """Write a plain checkpoint of the base model with W' in its weights, in the base's dtype.

    Raises:
        UserError: a weight is shared, so that it cannot hold W'.
    """
    from safetensors.torch import save_model

    model, folder = adapters.model, Path(path)
    was = adapters.merged
    adapters.merge()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with adapters.installation.plain():
            save_pretrained = getattr(type(model), "save_pretrained", None)  # transformers' own, not the patched one
            if save_pretrained is not None:
                save_pretrained(model, folder)
            else:
                save_model(model, str(folder / "model.safetensors"))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if not was:
            adapters.unmerge()
