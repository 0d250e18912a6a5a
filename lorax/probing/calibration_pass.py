"""One pass of a model over calibration batches, from which gradients, activations or both are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorax.adapters.linears.quantised import LateDequantising
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.probing.activations import SecondMoments
    from lorax.probing.gradient import GradientSums

Loss = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, float]"]
"""loss(model, batch) -> scalar mean, or (scalar mean, weight of the batch).

A loss may carry two attributes: `digest`, a string that changes whenever the function does (its gradients are then
cached), and `token_counts(batch)`, which returns what the function of that name in this module returns."""


def one_pass(
    model: nn.Module,
    loss: Loss | None,
    batches: Iterable[Any],
    gradients: GradientSums | None = None,
    moments: SecondMoments | None = None,
) -> None:
    """Run the model in eval mode (no dropout) over the batches; it is as before afterwards.

    Without `gradients` it runs forward only and needs no labels.

    Args:
        model: any module.
        loss: calls the model; None takes `model(**batch).loss`, weighted by the labels it counts.
        batches: read once.
        gradients: gains the gradients of every batch.
        moments: gains the inputs of the layers in every batch.

    Raises:
        UserError: a batch or its loss that cannot be used; the line names the batch.
    """
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.set_grad_enabled(gradients is not None))
        for collector in (gradients, moments):
            if collector is not None:
                stack.enter_context(collector.collecting(model))
        stack.callback(LateDequantising(model).restore)  # of the layers that are not collected from
        for number, batch in enumerate(batches):
            if moments is not None:
                moments.counts = token_counts(batch, loss, number)
                moments.batches += 1
            output = loss(model, batch) if loss else model(**_inputs(model, batch, number, gradients is not None))
            if gradients is not None:
                gradients.add(*_weighted_loss(model, batch, output, loss, number))
            del output


def token_counts(batch: Any, loss: Loss | None, number: int = 0) -> list[Tensor]:
    """Return how often each position of a batch counts as a token: 0 for padding, else 1.

    `loss.token_counts(batch)` where the loss has it; it may also give a position that stands for the same token of
    R examples the count R. Else the batch's `attention_mask`. For an encoder-decoder also `decoder_attention_mask`, or,
    without it, where labels are not -100.

    Args:
        batch: a calibration batch.
        loss: as in `one_pass`.
        number: of the batch, for messages.

    Returns:
        One (rows, tokens) tensor for the model's input ids, two for an encoder and a decoder; none where the batch does
        not say, and every position counts once.

    Raises:
        UserError: an attention mask that is not (rows, tokens).
    """
    given = getattr(loss, "token_counts", None)
    if given is not None:
        return list(given(batch))
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None:
        return []
    decoder, labels = batch.get("decoder_attention_mask"), batch.get("labels")
    if decoder is None and "decoder_input_ids" in batch and labels is not None:
        decoder = labels.ne(-100)
    masks = [mask] if decoder is None else [mask, decoder]
    for tokens in masks:
        if tokens.ndim != 2:
            shape = tuple(tokens.shape)
            raise UserError(f"calibration batch {number}: attention mask of shape {shape}; (rows, tokens) is needed")
    return masks


def first_few(names: Sequence[str], shown: int = 8) -> str:
    """Return the first names for a message, as many as fit in a line, and how many there are besides.

    Examples:
        >>> first_few(["a", "b", "c"], shown=2)
        'a, b and 1 more'
    """
    while shown > 1 and len(", ".join(names[:shown])) > 180:
        shown -= 1
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and each back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _inputs(model: nn.Module, batch: Any, number: int, labelled: bool) -> dict[str, Any]:
    """Return a batch as keywords of the model's forward, on its device."""
    if not isinstance(batch, Mapping) or (labelled and batch.get("labels") is None):
        labels = " with labels" if labelled else ""
        raise UserError(f"calibration batch {number}: a mapping{labels} is needed, or give loss=...")
    device = next(model.parameters()).device
    return {key: item.to(device) if isinstance(item, Tensor) else item for key, item in batch.items()}


def _weighted_loss(model: nn.Module, batch: Any, output: Any, loss: Loss | None, number: int) -> tuple[Tensor, float]:
    """Return (scalar mean, weight) of one batch from what the loss or the model returned."""
    value = output if loss else output.loss
    value, given = value if isinstance(value, tuple) else (value, None)
    weight = _counted_labels(model, batch) if given is None else float(given)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"calibration batch {number}: the loss is not a scalar")
    if weight > 0 and not bool(torch.isfinite(value)):
        raise UserError(f"calibration batch {number}: the loss is {float(value.detach())}")
    return value.reshape(()), weight


def _counted_labels(model: nn.Module, batch: Any) -> float:
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
