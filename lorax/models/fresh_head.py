"""Fresh heads: the modules of a classifier that a pretrained checkpoint has no weights for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def init_head(model: nn.Module, head: Sequence[str], seed: int) -> None:
    """Draw the weights of fresh heads: N(0, 0.02^2), biases 0, norms 1.

    A parameter is drawn from the seed and its own name alone, whatever else is drawn. The configuration's
    `initializer_range` stands for 0.02 where there is one.

    Args:
        model: changed in place.
        head: names of the modules.
        seed: the run's seed.
    """
    import torch

    std = getattr(getattr(model, "config", None), "initializer_range", None) or 0.02
    for module in head:
        for name, parameter in model.get_submodule(module).named_parameters(prefix=module):
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            values = torch.ones(parameter.shape) if is_scale else torch.zeros(parameter.shape)
            if parameter.ndim > 1:
                values.normal_(0.0, std, generator=seeded(f"head {seed} {name}"))
            with torch.no_grad():
                parameter.copy_(values)


def modules_without_weights(model: PreTrainedModel, weights: set[str]) -> list[str]:
    """Return the modules outside the pretrained body that a checkpoint has no weights for.

    Args:
        model: a transformers model; its `base_model` is the body.
        weights: names of the checkpoint's tensors.
    """
    body = f"{model.base_model_prefix}."
    outside = {name.rpartition(".")[0] for name, _ in model.named_parameters() if not name.startswith(body)}
    return sorted(outside - {name.rpartition(".")[0] for name in weights})


def seeded(text: str) -> torch.Generator:
    """Return a CPU generator whose seed is a digest of a text: texts that differ share nothing."""
    import torch

    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
