"""The likelihood of answers to choose from: the likeliest is the model's.

    log p(answer | prompt) = sum_t log p(token_t | prompt, tokens before)        normalised: divided by its tokens

The tokens are those that an answer is trained on, the end token among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.forward.batch import Encoded
from lorax.models.modality import Prediction, by_lane

if TYPE_CHECKING:
    from lorax.forward.generation import GeneratedText
    from lorax.models.modality import ActiveLanes
    from lorax.tasks.base import Task


def with_choices(modality: GeneratedText, task: Task, rows: Sequence[Encoded], shots: bool) -> list[Encoded]:
    """Return rows with the labels of each of their answers to choose from.

    Raises:
        UserError: an example without choices, or whose answer is none of them.
    """
    examples = [row.example for row in rows]
    for example in examples:
        if example.answer not in example.choices:
            raise UserError(f"task.scoring={task.scoring}: {task.name} has no choices to score; task.scoring=generate")
    turns = [turn for shot in task.shots for turn in (*shot.history, (shot.prompt, shot.answer))] if shots else []
    each = [(example, choice) for example in examples for choice in example.choices]
    texts = [(modality.texts(example)[0], choice) for example, choice in each]
    pairs = iter(modality.pairs(task.system, turns, [example for example, _ in each], texts))
    return [replace(row, choices=tuple(next(pairs)[1] for _ in row.example.choices)) for row in rows]


def choose(
    modality: GeneratedText, task: Task, rows: Sequence[Encoded], lanes: int, active: ActiveLanes
) -> list[list[Prediction]]:
    """Return, for each lane, the likeliest choice of each row, and the mean loss of the reference answer's tokens.

    Args:
        modality: encodes and computes losses.
        task: `scoring` says whether likelihoods are normalised.
        rows: from `with_choices`, or of a split that is not usually scored.
        lanes: K.
        active: restricts the model to some lanes.
    """
    rows = rows if all(row.choices for row in rows) else with_choices(modality, task, rows, shots=False)
    options = [replace(row, labels=choice) for row in rows for choice in row.choices]
    totals: list[list[float]] = [[] for _ in range(lanes)]
    for part in _parts(modality, task, options, lanes):
        batch = modality.collate([*part] * lanes, lanes)
        with active(range(lanes)):
            losses = modality.losses(modality.forward(batch), batch)
        sums = [values.sum().item() for values in losses.double().split(batch.counts)]
        for lane, own in zip(totals, by_lane(sums, lanes), strict=True):
            lane += own
    return [_answers(task, rows, lane) for lane in totals]


def _parts(modality: GeneratedText, task: Task, options: list[Encoded], lanes: int) -> Iterator[list[Encoded]]:
    start = 0
    while start < len(options):
        longest = sorted(options[start:], key=len, reverse=True)
        size = modality.fits(task, longest, lanes)
        yield options[start : start + size]
        start += size


def _answers(task: Task, rows: Sequence[Encoded], totals: Sequence[float]) -> list[Prediction]:
    answers, start = [], 0
    for row in rows:
        own = totals[start : start + len(row.choices)]
        start += len(row.choices)
        means = [total / len(labels) for total, labels in zip(own, row.choices, strict=True)]
        judged = means if task.scoring == "normalised" else own
        choices = row.example.choices
        best = min(range(len(choices)), key=lambda number: judged[number])
        answers.append(Prediction(choices[best], means[choices.index(row.example.answer)]))
    return answers
