"""Tail: what a model does with the logits of its output head, run without the rest of the model.

    logits = tail(head(hidden))        identity for most; s logits (Granite, Cohere), c tanh(logits / c) (Gemma-2)

It is the model's own forward, in which the body and the head give what they are told to give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Tail:
    """The forward pass of a model behind its head.

    Args:
        model: with an output head over tokens.
        head: its output head.
    """

    def __init__(self, model: PreTrainedModel, head: nn.Linear):
        self.model, self.head = model, head
        # T5 has no module that is the whole body: its decoder is what comes before the head.
        self.body: nn.Module = model.base_model if model.base_model is not model else model.get_decoder()
        self.empty = False
        """Whether nothing is done with the logits."""
        self.unknown = False
        """Whether the model cannot be run so."""

    @classmethod
    def of(cls, model: PreTrainedModel, head: nn.Linear) -> Tail:
        """Return a model's tail, tried on one row of logits."""
        weight = head.weight
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            row = torch.linspace(-3, 30, head.out_features, device=weight.device, dtype=weight.dtype)[None, None]
            try:
                tail = cls(model, head)
                told = tail(lambda hidden: row)
            except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError):
                tail = cls.__new__(cls)
                tail.empty, tail.unknown = False, True
                return tail
        tail.unknown = told.shape != row.shape[1:]
        tail.empty = not tail.unknown and torch.equal(told.to(row.dtype), row[0])
        return tail

    def __call__(self, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the model's logits, (C, V), where its head returns `project(...)`, (1, C, V)."""
        weight = self.head.weight
        hidden = weight.new_zeros(1, 1, self.head.in_features)
        token = torch.zeros(1, 1, dtype=torch.int64, device=weight.device)
        inputs: dict[str, Any] = {"input_ids": token}
        if self.model.config.is_encoder_decoder:
            inputs = {"encoder_outputs": (hidden,), "decoder_input_ids": token}
        body = lambda *args, **named: _Hidden(last_hidden_state=hidden)  # noqa: E731
        with _in_place(self.body, body), _in_place(self.head, project):
            return self.model(**inputs).logits.flatten(0, -2)


class _Hidden(BaseModelOutputWithPast):
    """A body's output that has nothing but hidden states, whatever else is asked for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@contextmanager
def _in_place(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have a module's forward be another one inside."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
