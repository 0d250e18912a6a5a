"""A model run once, on one small deterministic batch that is made from its own configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def example_inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """Return keyword arguments on which a transformers model can run, or None where they cannot be told.

    Args:
        model: its `main_input_name` says what it takes; sizes come from its configuration.
    """
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    parameter = next(model.parameters(), None)
    if parameter is None or config is None:
        return None
    text = getattr(config, "text_config", None) or config
    if name == "input_ids":
        inputs = {name: _ids(text)}
    elif name == "pixel_values":
        size = _sizes(getattr(config, "image_size", None))
        inputs = {} if size is None else {name: _waves(1, int(getattr(config, "num_channels", 3)), *size)}
    elif name == "input_features":
        frames = 2 * int(getattr(config, "max_source_positions", 0))
        inputs = {name: _waves(1, int(getattr(config, "num_mel_bins", 80)), frames)} if frames else {}
    elif name == "input_values":
        inputs = {name: _waves(1, 4000)}
    else:
        inputs = {}
    if not inputs:
        return None
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _ids(text)
    dtype, device = parameter.dtype, parameter.device
    return {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}


_WRAPPED = {"forward", "_original_forward"}
"""Attributes of a module around whose forward accelerate put its own."""
RUN_UP_TO = 50_000_000
"""A model with more parameters is not run unless inputs are given."""


def runs(model: nn.Module) -> bool:
    """Whether outputs are compared unasked: small models, in a precision whose rounding hides no difference."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return bool(sizes) and sum(sizes) <= RUN_UP_TO and kinds <= {torch.float32, torch.float64}


@torch.no_grad()
def run(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
    """Return a model's first floating output in eval mode; its modes and torch's generator are as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]), _own_precision(model):
            torch.manual_seed(0)
            return first_tensor(model(**inputs))
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _own_precision(model: nn.Module) -> Iterator[None]:
    """Leave autocast off: also the one that accelerate, and so Trainer, puts around a model's forward for good."""
    kept = [(vars(module), vars(module)["forward"]) for module in model.modules() if _WRAPPED <= vars(module).keys()]
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    for own, _ in kept:
        own["forward"] = own["_original_forward"]
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for own, forward in kept:
            own["forward"] = forward


def relative_error(theirs: Tensor, ours: Tensor) -> float:
    """Return max |theirs - ours| over max |ours|; 0 where ours is not finite, and nothing can be said."""
    if not bool(torch.isfinite(ours).all()):
        return 0.0
    if theirs.shape != ours.shape:
        return float("inf")
    scale = ours.double().abs().max().clamp_min(1e-12) if ours.numel() else torch.ones(())
    error = float(((theirs.double() - ours.double()).abs() / scale).max()) if ours.numel() else 0.0
    return error if error == error else float("inf")


def first_tensor(output: Any) -> Tensor | None:
    """Return the first floating tensor of a model's output: its logits, or its hidden states."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def _ids(config: Any) -> Tensor:
    size = int(getattr(config, "vocab_size", 2))
    return torch.arange(16).view(2, 8) * 7 % max(size - 1, 1) + (1 if size > 1 else 0)


def _sizes(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    return tuple(size) if isinstance(size, (tuple, list)) and len(size) == 2 else None


def _waves(*shape: int) -> Tensor:
    return torch.sin(torch.arange(float(torch.Size(shape).numel()))).view(shape)
