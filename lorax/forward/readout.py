"""One forward pass with logits only where something is predicted: exact, and most of the head's cost saved."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from lorax.forward.batch import Batch
    from lorax.models.registry import Loaded


class Readout:
    """Runs a model and returns its logits at chosen positions.

        logits = head(hidden[positions])   instead of   head(hidden)[positions]

    While it is open, the model's output head sees only the chosen rows of the hidden states. The
    model's own forward does the rest, so scaled or soft-capped logits, biases and tied weights are
    those of the model. A model whose head is not called as a module gives full logits, from which
    the rows are then taken. A frozen linear head is cast once for autocast, not in every pass.

    Args:
        loaded: model and kind; a classification model is simply called.

    Examples:
        with Readout(loaded) as readout:
            logits, _ = readout(batch.inputs, batch.positions)
    """

    def __init__(self, loaded: Loaded):
        self.model, self.kind = loaded.model, loaded.kind
        accepted = inspect.signature(self.model.forward).parameters
        self.takes_cache = "use_cache" in accepted
        self._positions: Tensor | None = None
        self._used = False
        self._head: nn.Module | None = None
        self._casts: dict[tuple[Any, ...], Tensor] = {}

    def __enter__(self) -> Readout:
        head = None if self.kind == "classification" else self.model.get_output_embeddings()
        if isinstance(head, nn.Module):
            self._head, self._plain, self._kept = head, head.forward, vars(head).get("forward")
            head.forward = self._project
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._head is not None:
            del self._head.forward  # the class's own is there again
            if self._kept is not None:
                self._head.forward = self._kept
            self._head, self._casts = None, {}

    def __call__(self, inputs: dict[str, Any], positions: Tensor) -> tuple[Tensor, Any]:
        """Run the model.

        Args:
            inputs: keywords of the model's forward.
            positions: (N,) indices into the flattened (rows * tokens) grid of outputs; row numbers
                for classification.

        Returns:
            (N, V) logits, and the model's output.
        """
        if self.takes_cache:
            inputs = {"use_cache": False, **inputs}
        if self.kind == "classification":
            output = self.model(**inputs)
            return output.logits, output
        self._positions, self._used = positions, False
        try:
            output = self.model(**inputs)
        finally:
            self._positions = None
        logits = output.logits.flatten(0, -2)
        return (logits if self._used else logits.index_select(0, positions)), output

    def begin(self, prefix: Tensor, cache: DynamicCache) -> None:
        """Run the (lanes, p) tokens that rows have in common, for their keys and values alone: no head."""
        self.model.base_model(input_ids=prefix, past_key_values=cache, use_cache=True)

    def _project(self, hidden: Tensor) -> Tensor:
        """The head's forward while this is open."""
        if self._positions is not None:
            self._used = True
            hidden = hidden.flatten(0, -2).index_select(0, self._positions).unsqueeze(0)
        head, kind = self._head, hidden.device.type
        if type(head) is not nn.Linear or head.weight.requires_grad or not torch.is_autocast_enabled(kind):
            return self._plain(hidden)
        dtype = torch.get_autocast_dtype(kind)
        bias = None if head.bias is None else self._cast(head.bias, dtype)
        return nn.functional.linear(hidden, self._cast(head.weight, dtype), bias)

    def _cast(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        key = (value.data_ptr(), value._version, dtype)
        if key not in self._casts:
            self._casts[key] = value.detach().to(dtype)
        return self._casts[key]


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each label, (N,), computed in fp32 or better."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return nn.functional.cross_entropy(wide, targets, reduction="none")


def run_batch(readout: Readout, batch: Batch, cache: DynamicCache | None = None) -> tuple[Tensor, Tensor]:
    """Return (N, V) logits and (N,) losses of a batch's labels.

    Args:
        readout: the open `Readout` of the model.
        batch: if it has a prefix, that is run first, a row a lane, and its keys and values serve all rows.
        cache: an empty cache, to be filled with the keys and values of the whole rows.
    """
    inputs = dict(batch.inputs)
    if batch.prefix is not None:
        cache = DynamicCache(config=readout.model.config) if cache is None else cache
        readout.begin(batch.prefix, cache)
        cache.batch_repeat_interleave(len(batch.counts) // len(batch.prefix))
    if cache is not None:
        inputs |= {"past_key_values": cache, "use_cache": True}
    logits, _ = readout(inputs, batch.positions)
    return logits, token_losses(logits, batch.targets)


def caches_plainly(loaded: Loaded) -> bool:
    """Say whether a causal model's past is keys and values by position alone.

    Then a beginning may be computed once for many rows, and a row may go on from a cache with masked
    gaps. Not so with sliding windows, recurrent states or attention biased by column (ALiBi).
    """
    if loaded.kind != "causal" or "position_ids" not in inspect.signature(loaded.model.forward).parameters:
        return False
    if loaded.model.base_model is loaded.model:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=loaded.model.config).layers)


def autocast(device: torch.device, dtype: str | None) -> AbstractContextManager[Any]:
    """Return the autocast context: None for none, else the name of a dtype such as `bfloat16`."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's weights are."""
    return next(model.parameters()).device
