"""Intent classification: banking77, clinc150 and snips, from the hub or as their authors publish them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.tasks.base import Task
from lorax.tasks.own_data import Asked, TextClassification, classification
from lorax.tasks.readers import Format, looks_local, read, read_hub, text
from lorax.tasks.registry import register

Pairs = dict[str, list[tuple[Asked, str]]]


@dataclass(frozen=True, kw_only=True)
class Intents(TextClassification):
    """A named dataset: `path` is its hub id, or the folder of the authors' files."""

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError(f"task={self.name}: give task.path=<folder or hub id>")
        self._check_texts()
        for key in ("template", "columns", "quotes", "second"):
            if getattr(self, key) is not None:
                raise UserError(f"task.{key}: {self.name} is read as its authors write it; task=text_classification")

    def load(self, data_seed: int) -> Task:
        """Read the official splits; validation is cut from train where there is none."""
        folder, rows = Path(str(self.path)).expanduser(), {}
        if folder.is_dir() and self.revision is not None:
            raise UserError(
                f"task.revision={self.revision}: task.path={self.path} lies here; only the hub has revisions"
            )
        if folder.is_dir():
            pairs = self._local(folder)
        elif looks_local(str(self.path)):
            raise UserError(f"task.path={self.path}: no such folder")
        else:
            used = Format(used=frozenset((self.text, self.label)))
            rows = read_hub(str(self.path), self.subset, used, self.revision)
            pairs = {part: self.pairs(rows[part]) for part in rows}
        pairs = {part: [pair for pair in some if self._is_kept(pair[1])] for part, some in pairs.items()}
        return classification(self, pairs, data_seed, rows)

    def _is_kept(self, label: str) -> bool:
        return True

    def _local(self, folder: Path) -> Pairs:
        raise NotImplementedError


@register("banking77")
@dataclass(frozen=True, kw_only=True)
class Banking77(Intents):
    """77 banking intents (Casanueva et al., arXiv:2003.04807): train.csv, test.csv; CC BY 4.0."""

    name: str = "banking77"
    path: str | None = "mteb/banking77"
    label: str = "label_text"

    def _local(self, folder: Path) -> Pairs:
        return {
            part: [(text(row, "text"), text(row, "category")) for row in read(_file(folder, f"{part}.csv"))]
            for part in ("train", "test")
        }


@register("clinc150")
@dataclass(frozen=True, kw_only=True)
class Clinc150(Intents):
    """150 intents of a virtual assistant (Larson et al., arXiv:1909.02027): data_full.json; CC BY 3.0."""

    name: str = "clinc150"
    path: str | None = "clinc/clinc_oos"
    subset: str | None = "plus"
    label: str = "intent"
    oos: bool = False
    """Keep the out-of-scope queries as a class of their own, 151 in all."""

    def _is_kept(self, label: str) -> bool:
        return self.oos or label != "oos"

    def _local(self, folder: Path) -> Pairs:
        data = authors_json(_file(folder, "data_full.json"))
        parts = {"train": "train", "validation": "val", "test": "test"}
        return {
            part: [(words.strip(), label) for words, label in data[key] + data[f"oos_{key}"]]
            for part, key in parts.items()
        }


@register("snips")
@dataclass(frozen=True, kw_only=True)
class Snips(Intents):
    """Seven intents of a voice assistant (Coucke et al., arXiv:1805.10190); CC0.

    The authors' `validate_*` files are the test set that the literature reports on.
    """

    name: str = "snips"
    path: str | None = "benayas/snips"
    label: str = "category"

    def _local(self, folder: Path) -> Pairs:
        pairs: Pairs = {"train": [], "test": []}
        for part, pattern in (("train", "train_*_full.json"), ("test", "validate_*.json")):
            for file in authors_files(folder, pattern):
                for intent, queries in authors_json(file).items():
                    for query in queries:
                        words = "".join(piece["text"] for piece in query["data"])
                        pairs[part].append((" ".join(words.split()), intent))
        return pairs


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UserError(f"task.path={folder}: holds no {name}")
    return folder / name


def authors_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder, and of the folders in it, that fit a pattern; there must be some."""
    files = sorted({*folder.glob(pattern), *folder.glob(f"*/{pattern}")})
    if not files:
        raise UserError(f"task.path={folder}: holds no {pattern}")
    return files


def is_latin1(path: Path) -> bool:
    """Return whether a file is not in UTF-8: some of the snips files are in Latin-1."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def authors_json(path: Path) -> Any:
    """Return what a JSON file holds, in UTF-8 or Latin-1.

    Raises:
        UserError: not JSON; names the line.
    """
    decoded = path.read_bytes().decode("latin-1" if is_latin1(path) else "utf-8")
    try:
        return json.loads(decoded)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
