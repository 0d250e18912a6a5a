"""One forward pass with logits only where something is predicted: exact, and most of the head's cost saved."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import masking_utils
from transformers.cache_utils import DynamicCache, DynamicLayer

from lorax.forward.logits import chunked_loss
from lorax.forward.logits.tail import Tail

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorax.models.modality import Batch


class Readout:
    """Runs a model that predicts tokens and returns its logits at chosen positions.

        logits = head(hidden[positions])   instead of   head(hidden)[positions]

    While it is open, the model's output head sees only the chosen rows of the hidden states. The
    model's own forward does the rest, so scaled or soft-capped logits, biases and tied weights are
    those of the model. A model whose head is not called as a module gives all logits; the rows are
    then taken from them, as they are while this is not open. A frozen linear head is cast once for
    autocast, not in every pass.

    Args:
        model: a transformers model with an output head over tokens.

    Examples:
        with Readout(model) as readout:
            logits = readout(inputs, positions)
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        self._positions: Tensor | None = None
        self._used = False
        self._rows: Tensor | None = None
        """The hidden states that the head was called with, where their losses are computed in chunks."""
        self._chunks = False
        self._tail: Tail | None = None
        self._head: nn.Module | None = None
        self._casts: dict[tuple[Any, ...], Tensor] = {}
        self._open = ExitStack()

    def __enter__(self) -> Readout:
        self._open.enter_context(_one_sequence_a_row())
        head = self.model.get_output_embeddings()
        if isinstance(head, nn.Module):
            self._head, self._head_forward, self._instance_forward = head, head.forward, vars(head).get("forward")
            head.forward = self._project
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        if self._head is not None:
            del self._head.forward  # the forward of its class is there again
            if self._instance_forward is not None:
                self._head.forward = self._instance_forward
            self._head, self._casts = None, {}

    def __call__(self, inputs: dict[str, Any], positions: Tensor) -> Tensor:
        """Run the model once and return (N, V) logits.

        Args:
            inputs: keywords of the model's forward.
            positions: (N,) flat indices into the grid (rows, tokens) of outputs.
        """
        if self.takes_cache:
            inputs = {"use_cache": False, **inputs}
        self._positions, self._used = positions, False
        try:
            output = self.model(**inputs)
        finally:
            self._positions = None
        logits = output.logits.flatten(0, -2)
        return logits if self._used else logits.index_select(0, positions)

    def run(self, batch: Batch, cache: DynamicCache | None = None) -> Tensor:
        """Return the (N, V) logits of a batch's labels.

        Args:
            batch: if it has a prefix, that is run first, one row for each lane, and its keys and values serve all rows.
            cache: an empty cache, to be filled with the keys and values of the whole rows.
        """
        assert batch.positions is not None
        inputs: dict[str, Any] = dict(batch.inputs)
        if batch.prefix is not None:
            cache = DynamicCache(config=self.model.config) if cache is None else cache
            # Only the keys and values are wanted: no head.
            self.model.base_model(input_ids=batch.prefix, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(batch.counts) // len(batch.prefix))
        if cache is not None:
            inputs |= {"past_key_values": cache, "use_cache": True}
        return self(inputs, batch.positions)

    def losses(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of each label, (N,); where there are very many logits, some rows at a time.

        See `chunked_loss`. What the model does with its head's logits (it scales or caps them) is done to each chunk.
        """
        head = self._head
        if type(head) is not nn.Linear or len(batch.targets) * head.out_features < chunked_loss.FROM:
            return chunked_loss.token_losses(self.run(batch), batch.targets)
        if self._tail is None:
            self._tail = Tail.of(self.model, head)
        if self._tail.unknown:
            return chunked_loss.token_losses(self.run(batch), batch.targets)
        self._chunks = True
        try:
            self.run(batch)
        finally:
            self._chunks, rows, self._rows = False, self._rows, None
        assert rows is not None
        trains = any(value.requires_grad for value in head.parameters())
        if trains or not self._tail.empty:
            return chunked_loss.recomputed_losses(rows, self._logits, head.out_features, batch.targets)
        dtype = rows.dtype
        if torch.is_autocast_enabled(rows.device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(rows.device.type)
        bias = None if head.bias is None else self._cast(head.bias, dtype)
        return chunked_loss.chunked_losses(rows.to(dtype), self._cast(head.weight, dtype), bias, batch.targets)

    def _logits(self, rows: Tensor) -> Tensor:
        """Return the model's logits, (C, V), from hidden states (C, n) at its head."""
        assert self._tail is not None
        return self._tail(lambda hidden: self._project(rows.unsqueeze(0)))

    def _project(self, hidden: Tensor) -> Tensor:
        """Stand in for the head's forward: take the chosen rows of (rows, tokens, n), then do as the head does."""
        if self._positions is not None:
            self._used = True
            hidden = hidden.flatten(0, -2).index_select(0, self._positions).unsqueeze(0)
            if self._chunks:
                self._rows, hidden = hidden[0], hidden[:, :1]
        head, device = self._head, hidden.device.type
        if type(head) is not nn.Linear or head.weight.requires_grad or not torch.is_autocast_enabled(device):
            return self._head_forward(hidden)
        dtype = torch.get_autocast_dtype(device)
        bias = None if head.bias is None else self._cast(head.bias, dtype)
        return nn.functional.linear(hidden, self._cast(head.weight, dtype), bias)

    def _cast(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        if value.dtype == dtype:
            return value.detach()
        key = (value.data_ptr(), value._version, dtype)
        if key not in self._casts:
            self._casts[key] = value.detach().to(dtype)
        return self._casts[key]


@contextmanager
def _one_sequence_a_row() -> Iterator[None]:
    """Keep transformers from looking, in every pass, whether a row holds several sequences: that waits for the device.

    No batch of ours does, and a tree brings its mask.
    """
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def caches_by_position(model: PreTrainedModel) -> bool:
    """Return whether what a causal model keeps of earlier tokens is their keys and values by position alone.

    Then a beginning may be computed once for many rows, and a row may go on from a cache with masked
    gaps. Not so with sliding windows, recurrent states or attention biased by column (ALiBi).
    """
    if "position_ids" not in inspect.signature(model.forward).parameters or model.base_model is model:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def autocast(device: torch.device, dtype: str | None) -> AbstractContextManager[Any]:
    """Return the autocast context: None for none, else the name of a dtype such as `bfloat16`."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's weights are."""
    return next(model.parameters()).device
