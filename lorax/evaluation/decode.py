"""Greedy decoding of K lanes at once, with a KV cache, verified answers first and finished rows removed.

The rows of a batch are prompts followed by their reference answers, in one causal forward pass. It
gives the answer losses, and by the argmax at each answer position also what greedy decoding
would have said there: as long as that agrees with the answer, the answer's tokens *are* the
greedy tokens, since each was chosen given the ones before it. A row that agrees to the end token
needs no decoding at all; any other goes on from its first disagreement, with the cache it has. So
the result is greedy decoding's, token for token (up to rounding between the two forms of the same
product), at a fraction of its steps.

Columns of the cache that a row does not use (padding, rejected answer tokens) are masked, and
positions are given to the model explicitly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lorax.forward.batch import Encoded, collate, pad_id, shared_prefix
from lorax.forward.readout import Readout, caches_plainly, run_batch

if TYPE_CHECKING:
    from lorax.models.registry import Loaded

Active = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Restricts the forward to some lanes, one equal block of rows each."""


@dataclass
class Decoded:
    """One row: what was said, and the loss of the reference answer."""

    tokens: list[int]
    """Greedy tokens, without the end token."""
    loss: float
    """Mean cross-entropy of the answer's tokens and its end token."""


def end_tokens(loaded: Loaded) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's and those of the model's generation settings."""
    named = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    found = named if isinstance(named, list) else [named]
    return frozenset(int(token) for token in [loaded.tokenizer.eos_token_id, *found] if token is not None)


def decode(
    loaded: Loaded,
    readout: Readout,
    rows: Sequence[Encoded],
    lanes: int,
    active: Active,
    max_new_tokens: int,
    verify: bool = True,
    share: bool = True,
) -> list[list[Decoded]]:
    """Decode one batch of items for every lane.

    Args:
        loaded: model, tokenizer, kind.
        readout: the open `Readout` of the model.
        rows: b items; every lane gets each of them.
        lanes: K; the batch has K b rows.
        active: restricts the forward to lanes that still have unfinished rows.
        max_new_tokens: most tokens of a completion, the end token included.
        verify: accept the reference answer's tokens as far as they are the greedy ones; False
            decodes every token from the prompt (the slow twin).
        share: compute what all prompts begin with once a lane.

    Returns:
        For each lane, one `Decoded` an item, in order.
    """
    if not caches_plainly(loaded):
        return _generated(loaded, readout, rows, lanes, active, max_new_tokens)
    device = loaded.model.device
    prefix = shared_prefix(rows, 1, device) if share else 0
    batch = collate(list(rows) * lanes, loaded, prefix, lanes).to(device)
    cache = DynamicCache(config=loaded.model.config)
    with active(range(lanes)):
        logits, token = run_batch(readout, batch, cache)
    losses = row_means(token, batch.counts)
    said = logits.argmax(-1).split(batch.counts)
    ends = end_tokens(loaded)
    states = []
    for row, (item, tokens) in enumerate(zip(list(rows) * lanes, [part.tolist() for part in said], strict=True)):
        states.append(_Row.verified(row, item, tokens, ends, max_new_tokens, verify))
    _finish(loaded, readout, cache, batch.width, states, lanes, active, ends, max_new_tokens)
    done = [Decoded(state.completion(ends), loss) for state, loss in zip(states, losses, strict=True)]
    return [done[lane * len(rows) : (lane + 1) * len(rows)] for lane in range(lanes)]


@dataclass
class _Row:
    """One row on its way."""

    index: int
    """Row in the first batch; its lane is index // b."""
    kept: int
    """Columns of the first pass that are this row's past: the prompt and the accepted tokens."""
    tokens: list[int]
    """The completion so far."""
    over: bool
    length: int
    """Tokens before the completion's last one, which is the next to be fed."""

    @classmethod
    def verified(
        cls, index: int, item: Encoded, said: list[int], ends: frozenset[int], most: int, verify: bool
    ) -> _Row:
        agreed = 0
        while verify and agreed < len(said) and said[agreed] == item.labels[agreed] and said[agreed] not in ends:
            agreed += 1
        # All labels agree without an end token among them only if the answer has none.
        tokens = (item.labels[:agreed] + said[agreed : agreed + 1])[:most]
        agreed = min(agreed, len(tokens) - 1)
        kept = len(item.ids) + agreed
        return cls(index, kept, tokens, tokens[-1] in ends or len(tokens) >= most, kept)

    def say(self, token: int, ends: frozenset[int], most: int) -> None:
        self.length += 1
        self.tokens.append(token)
        self.over = token in ends or len(self.tokens) >= most

    def completion(self, ends: frozenset[int]) -> list[int]:
        return self.tokens[:-1] if self.tokens and self.tokens[-1] in ends else self.tokens


def _finish(
    loaded: Loaded,
    readout: Readout,
    cache: DynamicCache,
    width: int,
    states: list[_Row],
    lanes: int,
    active: Active,
    ends: frozenset[int],
    most: int,
) -> None:
    """Say the tokens that are left, dropping finished rows when enough have finished."""
    device = loaded.model.device
    block = len(states) // lanes
    current, going, mask = states, list(range(lanes)), None
    while not all(state.over for state in current):
        chosen, still = _compact(current, going, len(current) // len(going) if mask is not None else block)
        if mask is None or len(chosen) < len(current):
            keep = torch.tensor(chosen, device=device)
            if mask is None:
                deepest = max(current[row].kept for row in chosen)
                if deepest < width:
                    cache.crop(deepest - width)
                kept = torch.tensor([state.kept for state in current], device=device)
                mask = (torch.arange(deepest, device=device) < kept[:, None]).long()
            cache.batch_select_indices(keep)
            mask, current, going = mask[keep], [current[row] for row in chosen], still
        feed = torch.tensor([[state.tokens[-1], state.length] for state in current], device=device)
        mask = torch.cat([mask, mask.new_ones(len(current), 1)], dim=1)
        inputs = {
            "input_ids": feed[:, :1],
            "position_ids": feed[:, 1:],
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        with active(going):
            logits, _ = readout(inputs, torch.arange(len(current), device=device))
        for state, token in zip(current, logits.argmax(-1).tolist(), strict=True):
            if not state.over:
                state.say(token, ends, most)


def _compact(current: list[_Row], going: list[int], block: int) -> tuple[list[int], list[int]]:
    """Choose the rows to go on with: equal blocks for the lanes that are not finished.

    A lane with fewer unfinished rows than the fullest keeps finished ones as filler. Rows are
    dropped only when a quarter of the batch can go: dropping copies the cache.
    """
    open_rows = [
        [row for row in range(lane * block, (lane + 1) * block) if not current[row].over] for lane in range(len(going))
    ]
    size = max(map(len, open_rows))
    still = [lane for lane, rows in zip(going, open_rows, strict=True) if rows]
    if size * len(still) > 0.75 * len(current):
        return list(range(len(current))), going
    chosen = []
    for lane, rows in enumerate(open_rows):
        if rows:
            filler = [row for row in range(lane * block, (lane + 1) * block) if current[row].over]
            chosen += sorted([*rows, *filler[: size - len(rows)]])
    return chosen, still


def _generated(
    loaded: Loaded, readout: Readout, rows: Sequence[Encoded], lanes: int, active: Active, most: int
) -> list[list[Decoded]]:
    """Decode with transformers' own `generate`; losses in a pass of their own.

    A causal model's prompts are padded on the left, where they are gone on from. An encoder's stay padded
    on the right: on the left, absolute positions (BART) would count the padding.
    """
    device, ends, pad = loaded.model.device, end_tokens(loaded), pad_id(loaded.tokenizer)
    batch = collate(list(rows) * lanes, loaded).to(device)
    width = max(len(row.ids) for row in rows)
    if loaded.kind == "seq2seq":
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    else:
        ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows] * lanes, device=device)
        mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows] * lanes, device=device)
    with active(range(lanes)):
        _, token = run_batch(readout, batch)
        output = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
        )
    losses = row_means(token, batch.counts)
    start = 1 if loaded.kind == "seq2seq" else width
    done = []
    for tokens, loss in zip(output[:, start:].tolist(), losses, strict=True):
        stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        done.append(Decoded(tokens[:stop], loss))
    return [done[lane * len(rows) : (lane + 1) * len(rows)] for lane in range(lanes)]


def row_means(losses: Tensor, counts: list[int]) -> list[float]:
    """Return the mean loss of each row's labels."""
    return torch.stack([part.mean() for part in losses.split(counts)]).tolist()
