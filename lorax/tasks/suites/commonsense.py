"""Commonsense questions as LLM-Adapters (arXiv:2304.01933) asks them: eight sets, answered by name.

Rows are LLM-Adapters' own (`instruction`, `output`, `answer`; so is commonsense_170k), or those of the sets' authors,
which are put into the same words. Files of LLM-Adapters: github.com/AGI-Edgerunners/LLM-Adapters, dataset/<set>.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorax.errors import UserError, near
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.own_data import TextToText
from lorax.tasks.readers import Row, Rows, text
from lorax.tasks.readers.rows import value
from lorax.tasks.registry import register

SCORINGS = ("generate", "likelihood", "normalised")
_ANSWER = "the correct answer is "
_FORMAT = re.compile(r"Answer format: *([\w/]+)\s*$")
Question = tuple[str, str]
"""The instruction, and the name of the right answer."""


def _choose(kind: str, ask: str, options: Sequence[str], right: int) -> Question:
    names = [f"{kind}{number}" for number in range(1, len(options) + 1)]
    gap = "\n\n" if kind == "solution" else " "
    listed = gap.join(f"{name.capitalize()}: {option}" for name, option in zip(names, options, strict=True))
    end = " " if kind == "option" else "\n\n"
    return f"Please choose the correct {ask}\n\n{listed}{end}Answer format: {'/'.join(names)}", names[right]


def _number(row: Row, key: str, first: int, count: int) -> int:
    found = text(row, key)
    if not found.isdecimal() or not first <= int(found) < first + count:
        raise UserError(f"{row[0]}: field {key!r} is {found[:20]!r}, not a number from {first} to {first + count - 1}")
    return int(found) - first


def _boolq(row: Row) -> Question:
    return (
        f"Please answer the following question with true or false, question: {text(row, 'question')}?\n\n"
        "Answer format: true/false"
    ), text(row, "answer").lower()


def _piqa(row: Row) -> Question:
    options = [text(row, "sol1"), text(row, "sol2")]
    return _choose("solution", f"solution to the question: {text(row, 'goal')}", options, _number(row, "label", 0, 2))


def _siqa(row: Row) -> Question:
    options = [text(row, f"answer{letter}") for letter in "ABC"]
    ask = f"answer to the question: {text(row, 'context')} {text(row, 'question')}"
    return _choose("answer", ask, options, _number(row, "label", 1, 3))


def _winogrande(row: Row) -> Question:
    options = [text(row, "option1"), text(row, "option2")]
    ask = f"answer to fill in the blank to complete the given sentence: {text(row, 'sentence')}"
    return _choose("option", ask, options, _number(row, "answer", 1, 2))


def _hellaswag(row: Row) -> Question:
    endings = value(row, "endings")
    if not isinstance(endings, list | tuple) or len(endings) != 4 or not all(isinstance(one, str) for one in endings):
        raise UserError(f"{row[0]}: field 'endings' is not a list of 4 texts")
    ask = f"ending to complete the given sentence: {text(row, 'activity_label')}: {text(row, 'ctx')}"
    return _choose("ending", ask, endings, _number(row, "label", 0, 4))


def _lettered(row: Row) -> Question:
    """ARC and OpenBookQA: choices with labels, A to E or 1 to 5."""
    choices = value(row, "choices")
    if not isinstance(choices, Mapping) or not {"text", "label"} <= choices.keys():
        raise UserError(f"{row[0]}: field 'choices' is not an object with lists 'text' and 'label'")
    labels, key = [str(one) for one in choices["label"]], text(row, "answerKey")
    if key not in labels or len(labels) != len(choices["text"]):
        raise UserError(f"{row[0]}: answerKey {key!r} is none of the labels {', '.join(labels)}")
    stem = text(row, "question_stem" if "question_stem" in row[1] else "question")
    return _choose("answer", f"answer to the question: {stem}", choices["text"], labels.index(key))


SETS: dict[str, Callable[[Row], Question]] = {
    "boolq": _boolq, "piqa": _piqa, "social_i_qa": _siqa, "hellaswag": _hellaswag, "winogrande": _winogrande,
    "arc_easy": _lettered, "arc_challenge": _lettered, "openbookqa": _lettered,
}  # fmt: skip


@register("commonsense")
@dataclass(frozen=True, kw_only=True)
class Commonsense(TextToText):
    """One of the eight sets; `path`: a folder of LLM-Adapters' (train.json, test.json), or a hub id of the authors'."""

    name: str = "commonsense"
    set: str = "arc_easy"
    """boolq | piqa | social_i_qa | hellaswag | winogrande | arc_easy | arc_challenge | openbookqa"""
    scoring: str = "generate"
    """generate: the completion, read by `extractor` | likelihood, normalised: the likeliest of the answers."""
    prompt: str = "instruction"
    extractor: str = "keyword_first"
    tolerant: str = "keyword_first"
    max_new_tokens: int = 32
    batch_size: int = 16
    steps: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set not in SETS:
            raise UserError(f"task.set={self.set}: {near(self.set, SETS)}")
        if self.scoring not in SCORINGS:
            raise UserError(f"task.scoring={self.scoring}: {near(self.scoring, SCORINGS)}")

    def rows(self, asked: str, answer: str, *others: str) -> dict[str, Rows]:
        """Return the rows of every split with all their fields; a test without answers gives way to validation."""
        rows = self.all_rows()
        if self.test is None and "validation" in rows and ("test" not in rows or _are_secret(rows["test"])):
            rows["test"] = rows.pop("validation")
            rows["train"].remarks.append("tested on the validation split: the test split has no answers")
        return rows

    def example(self, row: Row) -> Example:
        """Return a question with the answers to choose from, trained on as "the correct answer is <name>"."""
        fields = row[1]
        if "instruction" in fields:
            instruction, gold = text(row, "instruction"), text(row, "answer")
        else:
            instruction, gold = SETS[self.set](row)
            row = (row[0], {**fields, "instruction": instruction, "input": None})
        found = _FORMAT.search(instruction)
        names = found[1].split("/") if found else []
        if gold not in names:
            told = f"none of {', '.join(names)}" if names else "but the instruction ends in no 'Answer format: a/b'"
            raise UserError(f"{row[0]}: the answer is {gold[:20]!r}, {told}")
        prompt = instruction if self.template is None else self.joined.fill(row)
        choices = tuple(_ANSWER + name for name in names)
        return Example(prompt_id(prompt), prompt, _ANSWER + gold, meta={"gold": gold}, choices=choices)

    def task(self, official: Mapping[str, Sequence[Example]], rows: Mapping[str, Rows], data_seed: int) -> Task:
        """Return the task, with the score of a guess among its answers."""
        made = super().task(official, rows, data_seed)
        chance = sum(1 / len(example.choices) for example in made.test) / len(made.test)
        notes: dict[str, Any] = made.notes | {"chance": chance, "data": f"{made.notes['data']}; guessing: {chance:.3f}"}
        return replace(made, scoring=self.scoring, notes=notes)


def _are_secret(rows: Rows) -> bool:
    fields = rows.rows[0][1]
    return "instruction" not in fields and str(fields.get("label", fields.get("answer", "?"))) in ("-1", "")
