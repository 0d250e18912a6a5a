"""Scores by item: every run of a pack answers every item of a split, all runs in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lorax.forward.active import active, frozen_factors, pack_of
from lorax.forward.modality import modality_of
from lorax.forward.readout import autocast, device_of
from lorax.records.integrity import SCORED, over_tasks
from lorax.stats.measures.corpus import of_corpus

if TYPE_CHECKING:
    from lorax.adapters.install import Adapters
    from lorax.forward.heads import Head
    from lorax.models.modality import Modality
    from lorax.models.registry import Loaded
    from lorax.tasks.base import Task

Item = dict[str, Any]


def evaluate(
    loaded: Loaded,
    task: Task,
    split: str = "test",
    adapters: Sequence[Adapters] | None = None,
    heads: Sequence[Head] = (),
    *,
    batch_size: int | None = None,
    autocast_dtype: str | None = None,
    shots: bool = False,
    modality: Modality[Any] | None = None,
) -> list[list[Item]]:
    """Score every item of a split, for each run of a pack.

    What an answer is, its loss and its score are the modality's: greedy completions and the mean loss of
    the reference answer, the most likely class and its cross-entropy, a number and its squared error.
    Items of similar size are put together; a batch of b items has K b rows.

    Args:
        loaded: the model, with the adapters installed if there are any.
        task: gives the examples and scores the answers.
        split: train | validation | test | heldout.
        adapters: those of a pack, one for each lane; None: the model as it is, K = 1.
        heads: their heads, in the same order.
        batch_size: at most this many items at once; None: as many as fit into memory (`Modality.fits`).
        autocast_dtype: dtype of the forward pass by autocast, or None.
        shots: put the task's few-shot examples before each prompt.
        modality: None: that of the model; `CausalText(loaded, verify=False)` gives the same answers, slowly.

    Returns:
        For each lane, rows {split, row, id, score, tolerant, loss, completion, answer} in the order of the split;
        `row` is the place in the split, `id` the digest of the prompt.

    Raises:
        UserError: adapters that were not installed together; an example that the model cannot take.
    """
    modality = modality or modality_of(loaded)
    rows = modality.encode(task, split, shots)
    handles = list(adapters or [])
    pack_of(handles)
    lanes = max(len(handles), len(heads), 1)
    items: list[list[Item]] = [[{}] * len(rows) for _ in range(lanes)]
    device = device_of(loaded.model)

    def only(chosen: Sequence[int]) -> AbstractContextManager[None]:
        return active([handles[k] for k in chosen] if handles else [], [heads[k] for k in chosen] if heads else [])

    with _evaluating(loaded, handles), torch.inference_mode(), frozen_factors(handles), modality.open():
        for indices in batches(modality, task, rows, lanes, batch_size):
            chosen = [rows[index] for index in indices]
            with autocast(device, autocast_dtype):
                predictions = modality.predict(task, chosen, lanes, only)
            for lane_items, lane_predictions in zip(items, predictions, strict=True):
                for index, row, prediction in zip(indices, chosen, lane_predictions, strict=True):
                    scored = modality.score(task, row, prediction)
                    lane_items[index] = {"split": split, "row": index, "id": row.example.id, **scored}
    return items


def batches(
    modality: Modality[Any], task: Task, rows: Sequence[Any], lanes: int, batch_size: int | None
) -> Iterator[list[int]]:
    """Yield indices of rows of similar size, the largest first, as many as fit into memory.

    Args:
        modality: says how many fit.
        task: what is answered.
        rows: its encoded examples.
        lanes: K; each item takes K rows of a batch.
        batch_size: at most this many items; None: memory alone decides.
    """
    left = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    while left:
        size = modality.fits(task, [rows[index] for index in left], lanes)
        size = size if batch_size is None else min(size, batch_size)
        yield left[:size]
        left = left[size:]


def summarise(items: Sequence[Item], corpus: str | None = None) -> dict[str, Any]:
    """Return the means of score, tolerant and loss over items, their number, and what only all of them say.

    Args:
        items: of one split.
        corpus: `Task.corpus`.

    Items that name a task each, as `task`, are summarised by it: the means are then those over tasks of each task's
    mean over its items, and `tasks` has each task's own.

    Examples:
        >>> summarise([{"score": 1, "loss": 0.5}, {"score": 0, "loss": 1.5}])
        {'score': 0.5, 'tolerant': None, 'loss': 1.0, 'n': 2}
    """
    if not any("task" in item for item in items):
        return _means(items) | (of_corpus(corpus, items) if corpus is not None else {})
    names = dict.fromkeys(sorted(str(item["task"]) for item in items))
    tasks = {name: _means([item for item in items if item["task"] == name]) for name in names}
    means = {key: over_tasks([entry[key] for entry in tasks.values()]) for key in SCORED}
    return {**means, "n": len(items), "mean_over": "tasks", "tasks": tasks}


def _means(items: Sequence[Item]) -> dict[str, Any]:
    means: dict[str, float | int | None] = {}
    for key in SCORED:
        values = [item[key] for item in items if item.get(key) is not None]
        means[key] = sum(values) / len(values) if values else None
    return {**means, "n": len(items)}


@contextmanager
def _evaluating(loaded: Loaded, adapters: Sequence[Adapters]) -> Iterator[None]:
    """Put the model and the adapters into evaluation mode; afterwards every module is in the mode it had before."""
    modes = {module: module.training for module in loaded.model.modules()}
    loaded.model.eval()
    for each in adapters:
        each.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
