"""Completions drawn from a model's own distribution, from uniform numbers that are given.

    token_t = the first v with F_t(v) > u_t        F_t: distribution function of softmax(logits_t / temperature)

One number a token decides: a row has the same completion alone, in a pack, and beside other rows, up to rounding (a
number may fall on the edge between two tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lorax.forward.batch import Encoded, pad_causal, pad_id, shared_prefix
from lorax.forward.decode import Completion, Stop, complete
from lorax.forward.generation import CausalText, GeneratedText
from lorax.forward.readout import caches_by_position

if TYPE_CHECKING:
    from lorax.models.modality import ActiveLanes


@dataclass
class Drawn(Completion):
    """The completion of one row as far as it is drawn."""

    uniforms: Sequence[float]
    """One number in [0, 1) for each token that it may have."""

    @classmethod
    def begin(cls, prompt: Sequence[int], uniforms: Sequence[float]) -> Drawn:
        """Return a completion without a token yet, to which `add` gives the first."""
        return cls([], len(prompt), len(prompt) - 1, False, uniforms)


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn."""

    temperature: float = 1.0
    """0: the most likely token."""

    def __call__(self, logits: Tensor, completions: Sequence[Completion]) -> Tensor:
        """Return the next token of each completion, (rows,).

        Args:
            logits: (rows, V).
            completions: those rows; a finished one gets some token, which nobody reads.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        numbers = [_next(completion) for completion in completions]
        drawn = torch.tensor(numbers, dtype=torch.float64, device=logits.device)[:, None]
        reached = torch.softmax(logits.double() / self.temperature, -1).cumsum(-1)
        tokens = torch.searchsorted(reached, drawn * reached[:, -1:], right=True)
        return tokens[:, 0].clamp(max=logits.shape[-1] - 1)


def _next(completion: Completion) -> float:
    assert isinstance(completion, Drawn)
    return 0.0 if completion.finished else completion.uniforms[len(completion.tokens)]


def draw(
    modality: GeneratedText,
    rows: Sequence[Encoded],
    completions: Sequence[Drawn],
    lanes: int,
    active: ActiveLanes,
    stop: Stop,
    sampler: Sampler,
) -> None:
    """Draw completions, their end tokens included.

    With the keys and values of earlier tokens, each prompt computed once, where the model caches them by position;
    else, as under `CausalText(share=False)`, every token by a pass over whole rows.

    Args:
        modality: of the model; open.
        rows: K b prompts, those of a lane next to each other; their labels are not read.
        completions: S for each row, in the order of the rows; filled in.
        lanes: K.
        active: restricts the model to some lanes.
        stop: where completions end.
        sampler: draws tokens.
    """
    cached = isinstance(modality, CausalText) and modality.share and caches_by_position(modality.loaded.model)
    (_draw_cached if cached else _draw_whole)(modality, rows, completions, lanes, active, stop, sampler)


def _draw_cached(
    modality: GeneratedText,
    rows: Sequence[Encoded],
    completions: Sequence[Drawn],
    lanes: int,
    active: ActiveLanes,
    stop: Stop,
    sampler: Sampler,
) -> None:
    readout, device, copies = modality.readout, modality.device, len(completions) // len(rows)
    prompts = [replace(row, labels=[0]) for row in rows]  # what is predicted there is the first token
    prefix = shared_prefix(prompts, lanes, device)
    batch = pad_causal(prompts, pad_id(modality.loaded.tokenizer), prefix, lanes, device)
    cache = DynamicCache(config=modality.loaded.model.config)
    with active(range(lanes)):
        logits = readout.run(batch, cache).repeat_interleave(copies, 0)
    cache.batch_repeat_interleave(copies)
    for completion, token in zip(completions, sampler(logits, completions).tolist(), strict=True):
        completion.add(token, stop)
    complete(readout, cache, prefix + batch.inputs["input_ids"].shape[1], completions, lanes, active, stop, sampler)


def _draw_whole(
    modality: GeneratedText,
    rows: Sequence[Encoded],
    completions: Sequence[Drawn],
    lanes: int,
    active: ActiveLanes,
    stop: Stop,
    sampler: Sampler,
) -> None:
    copies = len(completions) // len(rows)
    prompts = [row for row in rows for _ in range(copies)]
    while not all(completion.finished for completion in completions):
        texts = [replace(row, labels=[*each.tokens, 0]) for row, each in zip(prompts, completions, strict=True)]
        batch = modality.collate(texts, lanes, share=False)
        with active(range(lanes)):
            logits = modality.forward(batch)
        ends = torch.tensor(batch.counts, device=logits.device).cumsum(0) - 1
        for completion, token in zip(completions, sampler(logits[ends], completions).tolist(), strict=True):
            if not completion.finished:
                completion.add(token, stop)
