"""Experts in the PEFT format: `target_parameters`, whose factors hold all experts of one parameter.

lora_A: (E r, p) expert after expert        lora_B: (q, r E) rank after rank, experts next to each other
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorax.adapters.experts.adapted import AdaptedExpert

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters

Pair = tuple[Tensor, Tensor]
"""(B, A), (m, r) and (r, n), eta in B."""


def expert_names(adapters: Adapters) -> dict[str, list[str]]:
    """Return {parameter: the names of its adapted experts}, in the order in which PEFT wraps parameters."""
    found: dict[str, list[str]] = {}
    for name in adapters.names():
        if isinstance(adapters.layer(name), AdaptedExpert):
            found.setdefault(name.rpartition(".")[0], []).append(name)
    order = {name: place for place, (name, _) in enumerate(adapters.model.named_parameters())}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def expert_tensors(adapters: Adapters, pairs: Mapping[str, Pair], r: int) -> dict[str, Tensor]:
    """Return what stock PEFT loads for all adapted experts.

    Args:
        adapters: on the model.
        pairs: {layer: (B, A)} of rank at most r; an expert that is not adapted gets zeros.
        r: the file's rank.
    """
    parameters = expert_names(adapters)
    tensors = {}
    for parameter, names in parameters.items():
        owner = parameter.rpartition(".")[0]
        beside = [other for other in parameters if other.rpartition(".")[0] == owner]
        inside = len(beside) - 1 - beside.index(parameter)  # PEFT wraps a module once for each parameter
        prefix = f"base_model.model.{owner}." + "base_layer." * inside
        B, A = _stacked([adapters.layer(name) for name in names], [pairs[name] for name in names], r)
        tensors[f"{prefix}lora_A.weight"] = A.flatten(0, 1).cpu().contiguous()
        tensors[f"{prefix}lora_B.weight"] = B.permute(1, 2, 0).flatten(1).cpu().contiguous()
    return tensors


def _stacked(layers: list, pairs: list[Pair], r: int) -> tuple[Tensor, Tensor]:
    """Return B, (E, q, r), and A, (E, r, p), the way round in which PEFT takes them."""
    first: AdaptedExpert = layers[0]
    m, n = first.out_features, first.in_features
    kind = torch.promote_types(pairs[0][0].dtype, torch.float32)
    B, A = torch.zeros(len(first.stack), m, r, dtype=kind), torch.zeros(len(first.stack), r, n, dtype=kind)
    for layer, (B_e, A_e) in zip(layers, pairs, strict=True):
        B[layer.index, :, : B_e.shape[1]] = B_e.to("cpu", kind)
        A[layer.index, : A_e.shape[0]] = A_e.to("cpu", kind)
    # a parameter whose module does not say "is_transposed" is (out, in) to PEFT, whatever its module computes
    if first.kind.transposed and not vars(first.owner).get("is_transposed", False):
        return A.mT, B.mT
    return B, A
