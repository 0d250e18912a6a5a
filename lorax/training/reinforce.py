"""REINFORCE: the passes of a step whose loss is on completions that the model itself has drawn, weighed by rewards.

    loss_k = 1 / (b S) sum_j [-(r_j - baseline_j) sum_t log p(y_jt) + kl sum_t KL(p_t, p0_t)]
    differentiated: sum_k w_k loss_k

`lorax.training.objective` says what the letters are. Completions are drawn before the losses, without a gradient, from
the adapters as they are; what step i of a run draws depends on its seed and i alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lorax.adapters.dropout import key
from lorax.errors import UserError
from lorax.forward.active import active, frozen_factors, pack_of, set_unpadded
from lorax.forward.batch import Encoded
from lorax.forward.generation import GeneratedText
from lorax.forward.readout import autocast
from lorax.forward.sampling import Drawn, Sampler, draw
from lorax.forward.text import token_losses
from lorax.models.modality import by_lane
from lorax.training.objective import Rewarded

if TYPE_CHECKING:
    from lorax.models.modality import Batch, Modality
    from lorax.training.state import RunState


@dataclass(frozen=True)
class Rollout:
    """A prompt with a completion that was drawn for it."""

    row: Encoded
    """The prompt; its labels are the completion's tokens, the end token included."""
    score: float
    """What the task gives it."""
    advantage: float
    """r_j - baseline_j"""


class RewardedSteps:
    """The passes of a step of runs that are trained on rewards, as they come.

    Args:
        modality: of the model.
        objective: of all runs of the pack.

    Raises:
        UserError: a model whose answers are not generated texts.
    """

    def __init__(self, modality: Modality[Encoded], objective: Rewarded):
        if not isinstance(modality, GeneratedText):
            raise UserError(f"objective=reinforce: task={objective.task.name} has no answers that a model generates")
        self.modality, self.task, self.settings = modality, objective.task, objective.settings
        self.sampler, self.stop = Sampler(self.settings.temperature), modality.stop(objective.task)

    def gradients(self, going: list[RunState]) -> Tensor:
        """Accumulate the gradient of every run that is going; return their losses, (K,)."""
        plan, adapters = going[0].plan, [state.run.adapters for state in going]
        rollouts = self.rollouts(going)
        size = plan.batch_size // plan.accumulation
        total: Tensor | None = None
        for start in range(0, plan.batch_size, size):
            lanes = [[each for prompt in lane[start : start + size] for each in prompt] for lane in rollouts]
            for part in self._pieces(lanes, plan.max_tokens):
                batch = self.modality.collate([each.row for each in part], len(going), share=plan.share_prefix)
                set_unpadded(adapters, batch if plan.skip_padding else None)
                losses = self._differentiate(going, batch, part)
                total = losses if total is None else total + losses
        assert total is not None
        return total

    def _pieces(self, lanes: Sequence[list[Rollout]], bound: int | None) -> list[list[Rollout]]:
        """Return the completions of a part, lane after lane, in pieces of equally many and at most `bound` tokens.

        The loss is a sum by a fixed number, so that pieces change nothing but rounding. One completion of each run
        is the least.
        """
        count, pieces = len(lanes[0]), []
        for size in range(count, 0, -1):
            if count % size == 0:
                starts = range(0, count, size)
                pieces = [[each for lane in lanes for each in lane[start : start + size]] for start in starts]
                if bound is None or all(
                    self.modality.padded([each.row for each in piece]) <= bound for piece in pieces
                ):
                    break
        return pieces

    @torch.no_grad()
    def rollouts(self, going: Sequence[RunState]) -> list[list[list[Rollout]]]:
        """Draw and score the completions of a step: for each run, for each prompt, S of them.

        Prompts are in the order in which they are split into micro-batches; each run notes its mean score and its
        number of tokens.
        """
        adapters, samples = [state.run.adapters for state in going], self.settings.samples
        batches = [self._prompts(state) for state in going]

        def only(chosen: Sequence[int]) -> AbstractContextManager[None]:
            return active([adapters[k] for k in chosen])

        longest = sorted((row for rows, _ in batches for row in rows), key=len, reverse=True)
        fitting = self.modality.fits(self.task, longest, len(going) * samples)
        drawn: list[list[list[Drawn]]] = [[] for _ in going]
        set_unpadded(adapters, None)
        with _as_they_are(adapters), frozen_factors(adapters), autocast(going[0].device, going[0].plan.autocast):
            for start in range(0, len(batches[0][0]), fitting):
                rows = [row for rows, _ in batches for row in rows[start : start + fitting]]
                numbers = [each for _, uniforms in batches for each in uniforms[start : start + fitting]]
                texts = [[Drawn.begin(row.ids, each) for each in own] for row, own in zip(rows, numbers, strict=True)]
                draw(self.modality, rows, sum(texts, []), len(going), only, self.stop, self.sampler)
                for mine, new in zip(drawn, by_lane(texts, len(going)), strict=True):
                    mine += new
        found = []
        for state, (rows, _), texts in zip(going, batches, drawn, strict=True):
            found.append([self._scored(row, own) for row, own in zip(rows, texts, strict=True)])
            every = [each for prompt in found[-1] for each in prompt]
            score, tokens = sum(each.score for each in every) / len(every), sum(len(each.row.labels) for each in every)
            state.noted = {"score": score, "tokens": float(tokens)}
        return found

    def _prompts(self, state: RunState) -> tuple[list[Encoded], list[list[list[float]]]]:
        """Return the step's rows and for each the uniform numbers of its completions."""
        plan = state.plan
        rows = [cast(Encoded, state.run.data[index]).last() for index in state.order[state.step]]
        generator = torch.Generator().manual_seed(key("completions", state.run.seed, state.step))
        shape = (len(rows), self.settings.samples, self.stop.max_tokens)
        numbers = torch.rand(shape, dtype=torch.float64, generator=generator).tolist()
        pairs = list(zip(rows, numbers, strict=True))
        if plan.accumulation > 1:
            pairs.sort(key=lambda pair: len(pair[0].ids))
        return [row for row, _ in pairs], [own for _, own in pairs]

    def _scored(self, row: Encoded, completions: Sequence[Drawn]) -> list[Rollout]:
        texts = [self.modality.text(self.stop.cut(each.tokens)) for each in completions]
        scores = [float(self.task.score(row.example, text)["score"]) for text in texts]
        advantages = self.settings.advantages(self.settings.rewards(scores))
        rows = [replace(row, labels=each.tokens) for each in completions]
        return [Rollout(*each) for each in zip(rows, scores, advantages, strict=True)]

    def _differentiate(self, going: Sequence[RunState], batch: Batch, part: Sequence[Rollout]) -> Tensor:
        """Add the gradients of a micro-batch to `.grad`; return its part of each run's loss, (K,), detached."""
        first, lanes = going[0], len(going)
        base = self._base(going, batch) if self.settings.kl else None
        with autocast(first.device, first.plan.autocast):
            logits = self._tempered(self.modality.forward(batch))
        advantages = logits.new_tensor([each.advantage for each in part])
        counts = torch.tensor(batch.counts, device=logits.device)
        losses = advantages.repeat_interleave(counts) * token_losses(logits, batch.targets)
        if base is not None:
            here = torch.log_softmax(logits, -1)
            losses = losses + self.settings.kl * (here.exp() * (here - base)).sum(-1)
        owner = torch.arange(lanes, device=logits.device).repeat_interleave(counts.view(lanes, -1).sum(1))
        sums = losses.new_zeros(lanes).index_add(0, owner, losses)
        means = sums / (first.plan.batch_size * self.settings.samples)
        means.backward(means.new_tensor([state.loss_weight * state.loss_scale for state in going]))
        return means.detach()

    @torch.no_grad()
    def _base(self, going: Sequence[RunState], batch: Batch) -> Tensor:
        """Return log p0 at the labels, (N, V): of the model with its adapters switched off."""
        adapters = [state.run.adapters for state in going]
        with ExitStack() as stack:
            stack.enter_context(_as_they_are(adapters))
            for each in adapters:
                stack.enter_context(each.disabled())
            stack.enter_context(autocast(going[0].device, going[0].plan.autocast))
            return torch.log_softmax(self._tempered(self.modality.forward(batch)), -1)

    def _tempered(self, logits: Tensor) -> Tensor:
        """Return logits whose softmax is p, in fp32 or better."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return wide / (self.settings.temperature or 1.0)


def _as_they_are(adapters: Sequence[object]) -> AbstractContextManager[None]:
    """Compute from the parameters themselves, not from the buffers in which gradients are collected."""
    pack = pack_of(adapters)  # type: ignore[arg-type]
    return nullcontext() if pack is None else pack.held(None)
