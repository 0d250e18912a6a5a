"""Greedy decoding in fixed buffers, so that the pass of one token can be recorded and replayed.

Keys and values lie in tensors of a fixed length; a token writes the next column of all rows. The token that a pass
chooses is the input of the next without coming to the host, which reads it only to know which rows have finished. A
row that has finished is computed with the others to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from lorax.forward.recorders import Recorder

if TYPE_CHECKING:
    from lorax.forward.decode import Completion, Stop
    from lorax.forward.readout import Readout

STEP = 64
"""Columns of the buffers are multiples of it, so that batches share them."""


@dataclass
class _Buffers:
    """What the pass of a token reads and writes, for some number of rows and columns."""

    ids: Tensor
    """(rows, 1) the tokens that go in."""
    positions: Tensor
    """(rows, 1) of these tokens."""
    mask: Tensor
    """(rows, 1, 1, columns) which columns a row sees."""
    column: Tensor
    """(1,) where the next keys and values go."""
    rows: Tensor
    """(rows,) 0, 1, ...: the places of the outputs."""
    cache: Any
    """A StaticCache of as many columns."""
    passes: int = 0
    replay: Callable[[], None] | None = None


class StaticDecoder:
    """Completes rows token by token.

    Args:
        readout: of a causal model that caches keys and values by position and hands masks on to its attention.
        recorder: records the pass of a token.
    """

    def __init__(self, readout: Readout, recorder: Recorder):
        self.readout, self.recorder = readout, recorder
        self._made: dict[tuple[int, int], _Buffers] = {}

    def forget(self) -> None:
        """Drop all buffers and what was recorded: the model or its adapters may change."""
        self._made.clear()

    def complete(self, cache: Any, completions: Sequence[Completion], stop: Stop) -> None:
        """Decode the unfinished rows to their ends.

        Args:
            cache: a DynamicCache with keys and values of a first pass, a row for each completion.
            completions: those rows, as far as they are decoded; all of them go on being computed.
            stop: where completions end.
        """
        if all(completion.finished for completion in completions):
            return
        with self.recorder.open():
            buffers = self._begin(cache, completions, stop)
            while not all(completion.finished for completion in completions):
                self._pass(buffers)
                for completion, token in zip(completions, buffers.ids[:, 0].tolist(), strict=True):
                    if not completion.finished:
                        completion.add(token, stop)

    def _begin(self, cache: Any, completions: Sequence[Completion], stop: Stop) -> _Buffers:
        """Fill the buffers with a batch."""
        open_rows = [completion for completion in completions if not completion.finished]
        longest = max(completion.past for completion in open_rows)
        ahead = max(stop.max_tokens - len(completion.tokens) for completion in open_rows)
        key = (len(completions), -(-(longest + ahead) // STEP) * STEP)
        if key not in self._made:
            self._made[key] = self._empty(*key, cache)
        buffers, device = self._made[key], self._made[key].ids.device
        state = [[each.tokens[-1], each.position, min(each.past, longest)] for each in completions]
        ids, positions, past = torch.tensor(state, device=device).split(1, dim=1)
        buffers.ids.copy_(ids)
        buffers.positions.copy_(positions)
        buffers.column.fill_(longest)
        buffers.mask.copy_((torch.arange(key[1], device=device) < past)[:, None, None])
        for layer, first in zip(buffers.cache.layers, cache.layers, strict=True):
            layer.cumulative_length.fill_(longest)
            for mine, theirs in ((layer.keys, first.keys), (layer.values, first.values)):
                mine[:, :, :longest].copy_(theirs[:, :, :longest])
                mine[:, :, longest:].zero_()  # of an earlier batch; 0 times what is not finite would not be 0
        return buffers

    def _empty(self, rows: int, columns: int, cache: Any) -> _Buffers:
        device = cache.layers[0].keys.device
        made: Any = StaticCache(config=self.readout.model.config, max_cache_len=columns)
        for layer, first in zip(made.layers, cache.layers, strict=True):
            layer.lazy_initialization(first.keys, first.values)
        return _Buffers(
            ids=torch.zeros(rows, 1, dtype=torch.long, device=device),
            positions=torch.zeros(rows, 1, dtype=torch.long, device=device),
            mask=torch.zeros(rows, 1, 1, columns, dtype=torch.bool, device=device),
            column=torch.zeros(1, dtype=torch.long, device=device),
            rows=torch.arange(rows, device=device),
            cache=made,
        )

    def _pass(self, buffers: _Buffers) -> None:
        """Run the pass of one token: the first as it is, which fills what layers keep; recorded from the second on."""
        buffers.passes += 1
        if buffers.passes == 1:
            self._work(buffers)
            return
        if buffers.replay is None:
            buffers.replay = self.recorder.record(lambda: self._work(buffers))
        buffers.replay()

    def _work(self, buffers: _Buffers) -> None:
        buffers.mask.index_fill_(3, buffers.column, True)
        inputs: dict[str, Any] = {
            "input_ids": buffers.ids,
            "position_ids": buffers.positions,
            "attention_mask": buffers.mask,
            "past_key_values": buffers.cache,
            "use_cache": True,
        }
        logits = self.readout(inputs, buffers.rows)
        buffers.ids.copy_(logits.argmax(-1, keepdim=True))
        buffers.positions.add_(1)
        buffers.column.add_(1)
