"""Decoding for the K runs of a pack at once, with a key-value cache; under greedy decoding, reference answers first.

The rows of the first pass are prompts followed by their reference answers. That one causal pass gives the
losses of the answers. Its argmax at each position of an answer is also the greedy token there, as long as
all tokens before it agree with the answer. So a row keeps the tokens that agree, and goes on from the first
that does not with the cache that it has; a row that agrees up to the end token is finished at once. The
result is that of greedy decoding, token for token (up to rounding between the two forms of the same
product), in far fewer steps.

Columns of the cache that a row does not use (padding, tokens of the answer that do not agree) are masked,
and positions are given to the model explicitly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lorax.forward.batch import Encoded, pad_causal, shared_prefix
from lorax.forward.readout import Readout, device_of
from lorax.forward.text import token_losses
from lorax.models.modality import row_means

if TYPE_CHECKING:
    from lorax.forward.static_decode import StaticDecoder
    from lorax.models.modality import ActiveLanes


@dataclass(frozen=True)
class Stop:
    """Where completions end."""

    tokens: frozenset[int]
    """The tokens that end one."""
    max_tokens: int
    """Most tokens of a completion, the end token included."""

    def reached(self, completion: Sequence[int]) -> bool:
        """Return whether a completion has come to its end."""
        return completion[-1] in self.tokens or len(completion) >= self.max_tokens

    def cut(self, completion: list[int]) -> list[int]:
        """Return a completion up to its first end token, without it."""
        end = next((place for place, token in enumerate(completion) if token in self.tokens), len(completion))
        return completion[:end]


@dataclass
class Completion:
    """The completion of one row as far as it is decoded."""

    tokens: list[int]
    past: int
    """Columns of the first pass that the row goes on from: its prompt and the tokens that agreed, but the last."""
    position: int
    """Position of its last token, which is the next that the model is given."""
    finished: bool

    @classmethod
    def checked(cls, row: Encoded, greedy: list[int], stop: Stop, verify: bool) -> Completion:
        """Accept the reference answer's tokens as far as they are the greedy ones, and the next greedy token."""
        agreed = 0
        while verify and agreed < len(greedy) and greedy[agreed] == row.labels[agreed] not in stop.tokens:
            agreed += 1
        # All labels agree without an end token among them only if the answer has none.
        tokens = (row.labels[:agreed] + greedy[agreed : agreed + 1])[: stop.max_tokens]
        past = len(row.ids) + min(agreed, len(tokens) - 1)
        return cls(tokens, past, past, stop.reached(tokens))

    def add(self, token: int, stop: Stop) -> None:
        """Add the next token."""
        self.tokens.append(token)
        self.position += 1
        self.finished = stop.reached(self.tokens)


Choose = Callable[[Tensor, Sequence[Completion]], Tensor]
"""Logits (rows, V) and the rows' completions -> the next token of each, (rows,)."""


def most_likely(logits: Tensor, completions: Sequence[Completion]) -> Tensor:
    """Return the most likely token of each row."""
    return logits.argmax(-1)


def decode(
    readout: Readout,
    rows: Sequence[Encoded],
    pad: int,
    lanes: int,
    active: ActiveLanes,
    stop: Stop,
    verify: bool = True,
    share: bool = True,
    static: StaticDecoder | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Decode one batch for every lane.

    Args:
        readout: of a causal model that caches keys and values by position.
        rows: b rows; every lane gets each of them, so the batch has K b rows.
        pad: the token to pad with.
        lanes: K.
        active: restricts the model to lanes that still have unfinished rows.
        stop: where completions end.
        verify: accept the reference answer's tokens as far as they are the greedy ones; False decodes every
            token from the prompt: the same result, slowly.
        share: compute what all prompts begin with once for each lane; False computes every row whole.
        static: decodes in fixed buffers; None: the batch shrinks as rows finish.

    Returns:
        For the rows of lane 0, then those of lane 1, ...: the greedy tokens without the end token, and the
        mean loss of the reference answer with its end token.
    """
    device = device_of(readout.model)
    repeated = [*rows] * lanes
    prefix = shared_prefix(rows, 1, device) if share else 0
    batch = pad_causal(repeated, pad, prefix, lanes, device)
    cache = DynamicCache(config=readout.model.config)
    with active(range(lanes)):
        logits = readout.run(batch, cache)
    losses = row_means(token_losses(logits, batch.targets), batch.counts)
    greedy = [part.tolist() for part in logits.argmax(-1).cpu().split(batch.counts)]
    completions = [Completion.checked(row, tokens, stop, verify) for row, tokens in zip(repeated, greedy, strict=True)]
    if static is not None:
        with active(range(lanes)):
            static.complete(cache, completions, stop)
    else:
        complete(readout, cache, prefix + batch.inputs["input_ids"].shape[1], completions, lanes, active, stop)
    return [stop.cut(completion.tokens) for completion in completions], losses


def complete(
    readout: Readout,
    cache: DynamicCache,
    width: int,
    completions: Sequence[Completion],
    lanes: int,
    active: ActiveLanes,
    stop: Stop,
    choose: Choose = most_likely,
) -> None:
    """Decode the unfinished rows, one token of each row per step; finished rows leave the batch when they are many.

    Args:
        readout: the model.
        cache: keys and values of the first pass, a row for each completion.
        width: tokens in a row of the first pass.
        completions: equally many for each lane.
        lanes: K.
        active: restricts the model to some lanes.
        stop: where completions end.
        choose: gives the next token of each row.
    """
    device = device_of(readout.model)
    current, active_lanes = list(completions), list(range(lanes))
    mask: Tensor | None = None
    while not all(completion.finished for completion in current):
        kept, lanes_kept = _rows_to_keep(current, active_lanes)
        if mask is None:
            longest = max(current[row].past for row in kept)
            if longest < width:
                cache.crop(longest - width)
            past = torch.tensor([completion.past for completion in current], device=device)
            mask = (torch.arange(longest, device=device) < past[:, None]).long()
        if len(kept) < len(current):
            chosen = torch.tensor(kept, device=device)
            cache.batch_select_indices(chosen)
            mask, current, active_lanes = mask[chosen], [current[row] for row in kept], lanes_kept
        mask = torch.cat([mask, mask.new_ones(len(current), 1)], dim=1)
        next_tokens = [[completion.tokens[-1], completion.position] for completion in current]
        ids, positions = torch.tensor(next_tokens, device=device).split(1, dim=1)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        with active(active_lanes):
            logits = readout(inputs, torch.arange(len(current), device=device))
        for completion, token in zip(current, choose(logits, current).tolist(), strict=True):
            if not completion.finished:
                completion.add(token, stop)


def _rows_to_keep(current: list[Completion], active_lanes: list[int]) -> tuple[list[int], list[int]]:
    """Return the rows to go on with, and the lanes that they belong to: those with an unfinished row.

    Each of these lanes keeps equally many rows: one that has fewer unfinished rows than another keeps finished
    ones too. Rows are dropped only when a quarter of the batch can go, because dropping copies the cache.
    """
    block = len(current) // len(active_lanes)
    blocks = [range(start, start + block) for start in range(0, len(current), block)]
    unfinished = [[row for row in rows if not current[row].finished] for rows in blocks]
    size = max(map(len, unfinished))
    lanes_kept = [lane for lane, rows in zip(active_lanes, unfinished, strict=True) if rows]
    if size * len(lanes_kept) > 0.75 * len(current):
        return list(range(len(current))), active_lanes
    kept = []
    for all_rows, rows in zip(blocks, unfinished, strict=True):
        if rows:
            finished = [row for row in all_rows if current[row].finished]
            kept += sorted([*rows, *finished[: size - len(rows)]])
    return kept, lanes_kept
