"""How good candidates are: mixtures put on one base as lanes of a pack, and their answers to a few items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lorax.errors import UserError
from lorax.evaluation.evaluate import evaluate, summarise
from lorax.mix.compose import Coefficients, layers, mix
from lorax.mix.experts import Expert
from lorax.mix.search import Fitness
from lorax.mix.settings import Settings
from lorax.running.launchers.memory import give_back, is_out_of_memory
from lorax.tasks.base import Task, shuffled

if TYPE_CHECKING:
    from lorax.models.registry import Loaded


def few(task: Task, settings: Settings, seed: int) -> Task:
    """Return a task whose train split is the few items of the search, and which has no other split to read.

    Raises:
        UserError: there are fewer items than asked for.
    """
    examples = task.heldout if settings.split == "heldout" else task.train
    if len(examples) < settings.items:
        raise UserError(f"mix.items={settings.items}: task={task.name} has {len(examples):,} {settings.split} examples")
    chosen = tuple(shuffled(examples, f"mix {seed}")[: settings.items])
    return replace(task, train=chosen, validation=(), test=(), heldout=())


def spread(vector: Sequence[float], settings: Settings, experts: Sequence[Expert], normalise: bool) -> Coefficients:
    """Return {layer: coefficients} of what the search varies: K numbers, or K for each layer, layer by layer.

    Under `normalise` they are divided by their sum; where that is 0 all experts count alike.
    """
    names, count = layers(experts), len(experts)
    table = np.asarray(vector, dtype=float).reshape(-1, count)
    if normalise:
        sums = table.sum(1, keepdims=True)
        table = np.where(sums == 0, 1 / count, table / np.where(sums == 0, 1, sums))
    rows = table if settings.per == "layer" else np.repeat(table, len(names), 0)
    return {name: row.tolist() for name, row in zip(names, rows, strict=True)}


@dataclass
class Fitnesses:
    """Evaluates candidates.

    Args:
        loaded: the base, as it was loaded; it is given back so.
        task: of `few`.
        experts: what is mixed.
        settings: of the search.
        compose: resolved.
        normalise: resolved.
        autocast: dtype of the forward pass by autocast, or None.
        batch_size: items at once.
    """

    loaded: Loaded
    task: Task
    experts: Sequence[Expert]
    settings: Settings
    compose: str
    normalise: bool
    autocast: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        self.lanes = self.settings.lanes or self.settings.population

    def __call__(self, candidates: np.ndarray) -> list[Fitness]:
        """Return the fitness of each candidate, as many at once as there are lanes; fewer where memory runs out."""
        found: list[Fitness] = []
        while len(found) < len(candidates):
            try:
                found += self._pack(candidates[len(found) : len(found) + self.lanes])
            except Exception as error:
                if self.lanes == 1 or not is_out_of_memory(error):
                    raise
                self.lanes = (self.lanes + 1) // 2
                give_back()
        return found

    def _pack(self, candidates: np.ndarray) -> list[Fitness]:
        from lorax.adapters.install import install

        plans = [
            mix(self.experts, spread(one, self.settings, self.experts, self.normalise), self.compose)
            for one in candidates
        ]
        handles = install(self.loaded.model, plans)
        try:
            answers = evaluate(
                self.loaded, self.task, "train", handles, batch_size=self.batch_size, autocast_dtype=self.autocast
            )
        finally:
            for handle in handles:
                handle.detach()
        sizes = np.abs(candidates).mean(1)
        return [self._fitness(summarise(items), size) for items, size in zip(answers, sizes, strict=True)]

    def _fitness(self, summary: dict[str, float | int | None], size: float) -> Fitness:
        loss, score = summary["loss"], summary["score"]
        fine = -float(loss) if loss is not None else 0.0
        if self.settings.fitness == "loss":
            if loss is None:
                raise UserError(f"mix.fitness=loss: task={self.task.name} measures no loss")
            return (fine - self.settings.l1 * size,)
        if score is None:
            raise UserError(f"mix.fitness=score: task={self.task.name} gives no score")
        sign = 1 if self.task.direction == "max" else -1
        return (sign * float(score) - self.settings.l1 * size, fine)
