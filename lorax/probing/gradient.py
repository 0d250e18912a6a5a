"""Per-layer gradients of a loss over calibration batches, one layer's gradient on the device at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorax.errors import UserError
from lorax.probing.cache import digest, key_of, remembered
from lorax.probing.parallel import all_threads
from lorax.probing.svd import finite
from lorax.probing.weight import oriented

Loss = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, float]"]


def layer_gradients(
    model: nn.Module, targets: dict[str, nn.Module], loss: Loss | None, batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Return G = sum_b w_b grad L_b / sum_b w_b of every target's weight.

    w_b is the number of labels that the loss of batch b averages over, so G is the gradient of the mean
    over all labelled tokens, however they fall into batches. Only target weights require a gradient; each
    is added to a float32 buffer on the CPU the moment it is complete and released, so the device holds one
    layer's gradient. The model is in eval mode (no dropout) during the pass; every flag and every `.grad`
    is as before afterwards. Modules that share a weight share its gradient, counted once.

    Args:
        model: any module with float weights.
        targets: {layer name: module} with an (m, n) weight, or Conv1D's (n, m).
        loss: loss(model, batch) -> scalar mean, or (scalar mean, weight); None takes `model(**batch).loss`
            weighted by the labels it counts (-100 is not counted, and a causal model's first is not).
        batches: read once.

    Returns:
        {layer name: (m, n) gradient on the CPU}, float32, or float64 where the weight is.

    Raises:
        UserError: no batches, a loss that is not a finite scalar, or targets that no gradient reaches.
    """
    sums: dict[int, Tensor] = {}
    total = 0.0
    with _prepared(model, targets, sums), torch.enable_grad():
        for number, batch in enumerate(batches):
            value, weight = _loss(model, batch, loss, number)
            if weight > 0:
                (value * weight).backward()
                total += weight
            del value
    if total == 0:
        raise UserError("calibration: no batch with a counted label; a gradient method needs batches=...")
    lost = [name for name, module in targets.items() if id(module.weight) not in sums]
    if lost:
        shown = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
        raise UserError(f"calibration: the loss does not reach {shown}; leave them out of targets")
    for gradient in sums.values():
        gradient.div_(total)
    return {name: oriented(module, sums[id(module.weight)]) for name, module in targets.items()}


class Gradients:
    """The layers' gradients, from one pass over the batches that runs when the first is asked for.

    A cached decomposition of a gradient is found again by a digest of all the model's values, the batches
    and the loss. A custom loss takes part through its attribute `digest` (a string that changes whenever
    the function does); without one its gradients are not cached.
    """

    def __init__(self, model: nn.Module, targets: dict[str, nn.Module], loss: Loss | None, batches: Any) -> None:
        """Remember what to run; nothing runs yet."""
        self._model, self._targets, self._loss = model, targets, loss
        self._batches = None if batches is None else list(batches)
        self._found: dict[str, Tensor] | None = None
        self._lock = threading.Lock()  # layers are looked at side by side; one of them runs the pass

    def __getitem__(self, name: str) -> Tensor:
        """Return the (m, n) gradient of a layer, on the CPU."""
        with self._lock:
            if self._found is None:
                if self._batches is None:
                    raise UserError("this init looks at gradients: give batches=..., and loss=... or labels in them")
                with all_threads():
                    self._found = layer_gradients(self._model, self._targets, self._loss, self._batches)
        return finite(self._found[name], f"layer {name}: its gradient on the calibration data")

    def release(self, name: str) -> None:
        """Forget a layer's gradient."""
        if self._found is not None:
            self._found.pop(name, None)

    @cached_property
    def digest(self) -> str | None:
        """What the gradients depend on, or None where that cannot be told."""
        named = "labels" if self._loss is None else getattr(self._loss, "digest", None)
        if named is None or self._batches is None:
            return None
        try:
            batches = digest(self._batches)
        except TypeError:
            return None
        values = (*self._model.named_parameters(), *self._model.named_buffers())
        state = [(key, remembered(value)) for key, value in values]
        kernel = getattr(getattr(self._model, "config", None), "_attn_implementation", None)
        place = next(self._model.parameters()).device.type
        return key_of(named, batches, state, kernel, place, torch.is_autocast_enabled(place))


@contextmanager
def _prepared(model: nn.Module, targets: dict[str, nn.Module], sums: dict[int, Tensor]) -> Iterator[None]:
    """Hook the target weights into `sums`; on leaving, put back modes, flags and gradients."""
    weights = {id(module.weight): module.weight for module in targets.values()}
    for name, module in targets.items():
        if not module.weight.is_floating_point():
            raise UserError(f"layer {name}: its {module.weight.dtype} weight has no gradient")
    modes = [(module, module.training) for module in model.modules()]
    state = [(p, p.requires_grad, p.grad) for p in {*model.parameters(), *weights.values()}]

    def collect(weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        if id(weight) in sums:
            sums[id(weight)] += gradient.to("cpu", sums[id(weight)].dtype)
        else:
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            sums[id(weight)] = gradient.to("cpu", wide, copy=True)

    with ExitStack() as stack:
        for parameter, required, gradient in state:
            stack.callback(_put_back, parameter, required, gradient)
            parameter.grad = None
            parameter.requires_grad_(id(parameter) in weights)
        for module, training in modes:
            stack.callback(setattr, module, "training", training)
        model.eval()
        for weight in weights.values():
            stack.callback(weight.register_post_accumulate_grad_hook(collect).remove)
        yield


def _put_back(parameter: Tensor, required: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(required)
    parameter.grad = gradient


def _loss(model: nn.Module, batch: Any, loss: Loss | None, number: int) -> tuple[Tensor, float]:
    """Return (scalar, weight) of one batch."""
    if loss is not None:
        result = loss(model, batch)
        value, weight = result if isinstance(result, tuple) else (result, None)
        weight = _counted(model, batch) if weight is None else float(weight)
    else:
        if not isinstance(batch, Mapping) or batch.get("labels") is None:
            raise UserError(f"calibration batch {number}: a mapping with labels is needed, or give loss=...")
        device = next(model.parameters()).device
        inputs = {key: item.to(device) if isinstance(item, Tensor) else item for key, item in batch.items()}
        value, weight = model(**inputs).loss, _counted(model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"calibration batch {number}: the loss is not a scalar")
    if weight > 0 and not bool(torch.isfinite(value)):
        raise UserError(f"calibration batch {number}: the loss is {float(value.detach())}")
    return value.reshape(()), weight


def _counted(model: nn.Module, batch: Any) -> float:
    """Return how many labels of a batch its mean loss is over; 1 where the batch does not say."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor):
        return 1.0
    if labels.is_floating_point():
        return float(len(labels)) if labels.ndim else 1.0
    return float((labels[..., 1:] if _causal(model) and labels.ndim > 1 else labels).ne(-100).sum())


def _causal(model: nn.Module) -> bool:
    """Say whether the model's loss compares each position with the next label."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    named = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
    return named or getattr(model, "loss_type", None) == "ForCausalLM"
