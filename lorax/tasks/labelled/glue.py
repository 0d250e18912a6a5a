"""GLUE's nine sets, from the hub or as its authors' archives hold them; and BoolQ, which is like them.

The answers of GLUE's test sets are secret. As in the literature, the dev set is the test set here; what the literature
often does besides, choosing rates and epochs on it too, is not done: validation is cut off train by hash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from lorax.errors import UserError, near
from lorax.tasks.base import Example, Task
from lorax.tasks.labelled.regression import number, regression
from lorax.tasks.own_data import Asked, TextClassification, both_of, classification
from lorax.tasks.readers import Format, Row, Rows, looks_local, read, read_hub, text
from lorax.tasks.registry import register


@dataclass(frozen=True)
class Set:
    """One of GLUE's sets."""

    folder: str
    """Its folder in the authors' archive."""
    classes: tuple[str, ...] = ()
    """Names by number, as on the hub; none: a number on a scale."""
    corpus: str | None = None
    """`Task.corpus`."""
    fields: tuple[str, ...] = ("sentence1", "sentence2")
    """Of the hub's rows: what is classified."""
    columns: tuple[str, ...] | None = None
    """Of the archive's files, where they have no header."""
    local: tuple[str, ...] = ()
    """Fields of the archive's rows, where they are called otherwise; the label comes last."""
    dev: tuple[str, ...] = ("dev",)
    """The archive's dev files."""


_ENTAILS = ("entailment", "not_entailment")
SETS = {
    "cola": Set("CoLA", ("unacceptable", "acceptable"), "matthews", ("sentence",),
                ("source", "label", "mark", "sentence"), ("sentence", "label")),
    "sst2": Set("SST-2", ("negative", "positive"), None, ("sentence",)),
    "mrpc": Set("MRPC", ("not_equivalent", "equivalent"), "f1 equivalent", local=("#1 String", "#2 String", "Quality")),
    "stsb": Set("STS-B", (), "correlation", local=("sentence1", "sentence2", "score")),
    "qqp": Set("QQP", ("not_duplicate", "duplicate"), "f1 duplicate", ("question1", "question2"),
               local=("question1", "question2", "is_duplicate")),
    "mnli": Set("MNLI", ("entailment", "neutral", "contradiction"), "parts matched", ("premise", "hypothesis"),
                local=("sentence1", "sentence2", "gold_label"), dev=("dev_matched", "dev_mismatched")),
    "qnli": Set("QNLI", _ENTAILS, None, ("question", "sentence")),
    "rte": Set("RTE", _ENTAILS),
    "wnli": Set("WNLI", ("not_entailment", "entailment")),
}  # fmt: skip
"""Name on the hub -> the set."""


@register("glue")
@dataclass(frozen=True, kw_only=True)
class Glue(TextClassification):
    """One set of GLUE (Wang et al., arXiv:1804.07461): `path` is its hub id, or the folder of the authors' archive."""

    name: str = "glue"
    path: str | None = "nyu-mll/glue"
    subset: str | None = "cola"
    """Which: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli."""

    def __post_init__(self) -> None:
        self._check_texts()
        if self.subset not in SETS:
            raise UserError(f"task.subset={self.subset}: no set of GLUE; {near(self.subset, SETS)}")
        if not self.path:
            raise UserError(f"task={self.name}: give task.path=<folder or hub id>")
        for key in ("template", "columns", "quotes", "second", "train", "validation", "test"):
            if getattr(self, key) is not None:
                raise UserError(f"task.{key}: {self.name} is read as its authors write it; task=text_classification")

    def load(self, data_seed: int) -> Task:
        """Read train and dev; validation is cut from train."""
        rows, fields = self._rows()
        if missing := [part for part in ("train", "test") if part not in rows]:
            raise UserError(f"task.path={self.path}: {self.subset} has no rows for {missing[0]}")
        options = replace(self, label=fields[-1])
        if not self._set.classes:
            numbers = {part: [(self._asked(row, fields), number(row, fields[-1])) for row in some]
                       for part, some in rows.items()}  # fmt: skip
            return _said(regression(options, numbers, data_seed, rows))
        pairs = {part: [(self._asked(row, fields), self._class(row, fields[-1])) for row in some]
                 for part, some in rows.items() if part != "mismatched"}  # fmt: skip
        task = replace(classification(options, pairs, data_seed, rows), corpus=self._set.corpus)
        if "mismatched" in rows:
            other = {
                "train": pairs["train"],
                "test": [(self._asked(row, fields), self._class(row, fields[-1])) for row in rows["mismatched"]],
            }
            second = _marked(classification(options, other, data_seed, rows), "mismatched")
            known = {example.id for example in second}
            test = [*_marked(task, "matched"), *(replace(example, id=f"{example.id}-mm") for example in second)]
            train, validation, heldout = (
                tuple(example for example in task.examples(part) if example.id not in known)
                for part in ("train", "validation", "heldout")
            )
            task = replace(task, test=tuple(test), train=train, validation=validation, heldout=heldout)
        return _said(task)

    @property
    def _set(self) -> Set:
        return SETS[str(self.subset)]

    def _rows(self) -> tuple[dict[str, Rows], tuple[str, ...]]:
        """Return the rows of train, of dev as test, and of MNLI's other dev set; and their fields, the label last."""
        folder, one = Path(str(self.path)).expanduser(), self._set
        if not folder.is_dir():
            if looks_local(str(self.path)):
                raise UserError(f"task.path={self.path}: no such folder")
            fields = (*one.fields, "label")
            names = {"train": ("train",), "test": ("validation", "validation_matched"),
                     "mismatched": ("validation_mismatched",)}  # fmt: skip
            return read_hub(str(self.path), self.subset, Format(used=frozenset(fields)), splits=names), fields
        folder = folder / one.folder if (folder / one.folder).is_dir() else folder
        fields = one.local or (*one.fields, "label")
        form = Format(columns=one.columns, quotes="text", used=frozenset(fields))
        files = dict(zip(("train", "test", "mismatched"), ("train", *one.dev), strict=False))
        for name in files.values():
            if not (folder / f"{name}.tsv").is_file():
                raise UserError(f"task.path={folder}: holds no {name}.tsv, which {self.subset} needs")
        return {part: read(folder / f"{name}.tsv", form) for part, name in files.items()}, fields

    def _asked(self, row: Row, fields: tuple[str, ...]) -> Asked:
        return both_of(row, fields[0], fields[1]) if len(fields) > 2 else text(row, fields[0])

    def _class(self, row: Row, key: str) -> str:
        """Return a row's class by its name; archives have numbers in some sets."""
        label, classes = text(row, key), self._set.classes
        if label in map(str, range(len(classes))):
            return classes[int(label)]
        if label not in classes:
            raise UserError(f"{row[0]}: label {label!r}; {near(label, classes)}")
        return label


def _marked(task: Task, part: str) -> list[Example]:
    return [replace(example, meta={**example.meta, "part": part}) for example in task.test]


def _said(task: Task) -> Task:
    """Say what the test set is."""
    said = "the dev set is the test set, as GLUE's own answers are secret; validation is cut off train"
    return replace(task, notes=task.notes | {"data": f"{task.notes['data']}; {said}"})


@register("boolq")
@dataclass(frozen=True, kw_only=True)
class BoolQ(TextClassification):
    """Yes or no to a question on a passage (Clark et al., arXiv:1905.10044; CC BY-SA 3.0).

    `path` is a hub id, the authors' folder (train.jsonl, dev.jsonl), or that of the LLM-Adapters (train.json,
    test.json), whose rows have no passage: there the question stands alone.
    """

    name: str = "boolq"
    path: str | None = "google/boolq"

    def load(self, data_seed: int) -> Task:
        """Read train and dev; validation is cut from train, and the dev set is the test set."""
        folder = Path(str(self.path)).expanduser()
        used = Format(used=frozenset(("question", "passage", "answer", "label", "instruction")))
        said = "the dev set is the test set, validation is cut off train"
        if folder.is_dir():
            files = {"train": _first(folder, ("train.jsonl", "train.json")),
                     "test": _first(folder, ("dev.jsonl", "val.jsonl", "test.json"))}  # fmt: skip
            rows = {part: read(path, used) for part, path in files.items()}
        elif looks_local(str(self.path)):
            raise UserError(f"task.path={self.path}: no such folder")
        else:
            rows = read_hub(str(self.path), self.subset, used, splits={"train": ("train",), "test": ("validation",)})
            if "test" not in rows:
                raise UserError(f"task.path={self.path}: has no split called validation")
        pairs = {part: [_yes_or_no(row) for row in some] for part, some in rows.items()}
        alone = sum(isinstance(asked, str) for some in pairs.values() for asked, _ in some)
        task = classification(self, pairs, data_seed, rows)
        said += f"; {alone:,} questions without a passage" if alone else ""
        return replace(task, notes=task.notes | {"data": f"{task.notes['data']}; {said}"})


_ANSWERS = {"true": "yes", "false": "no", "1": "yes", "0": "no", "yes": "yes", "no": "no"}


def _yes_or_no(row: Row) -> tuple[Asked, str]:
    key = "answer" if "answer" in row[1] else "label"
    answer = text(row, key).lower()
    if answer not in _ANSWERS:
        raise UserError(f"{row[0]}: {key} {answer!r}; {near(answer, _ANSWERS)}")
    if "passage" in row[1] or "instruction" not in row[1]:
        return both_of(row, "passage", "question"), _ANSWERS[answer]
    whole = text(row, "instruction")
    found = re.search(r"question:\s*(.+?)\s*(?:Answer format:|$)", whole, re.DOTALL)
    if found is None:
        raise UserError(f"{row[0]}: no 'question:' in field 'instruction'")
    return found[1], _ANSWERS[answer]


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"task.path={folder}: holds no {' and no '.join(names)}")
