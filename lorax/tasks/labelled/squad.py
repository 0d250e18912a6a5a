"""Extractive question answering in SQuAD's format: the answer is a span of a text, or, in version 2, there is none."""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.own_data import Files, with_remarks
from lorax.tasks.readers import Format, Row, Rows, looks_local, read, read_hub, text, written
from lorax.tasks.readers.files import ALIASES
from lorax.tasks.readers.json_files import parsed
from lorax.tasks.readers.opening import suffix_of, whole
from lorax.tasks.readers.rows import value
from lorax.tasks.readers.sources import existing
from lorax.tasks.registry import register
from lorax.tasks.splitting import Sizes, split

FIELDS = frozenset(("question", "context", "answers"))
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class QuestionTask(Task):
    """Questions on texts. `Example.meta` holds `question`, `context`, `answers` and where the first one `start`s."""

    window: int = 384
    """Tokens of question and text that are read at once."""
    stride: int = 128
    """Tokens that two windows of a text have in common."""
    longest: int = 30
    """Tokens of an answer at most."""
    null: bool = False
    """Whether "no answer" is an answer."""

    def score(self, example: Example, completion: str) -> dict[str, Any]:
        """Return exact match as `score` and token F1 as `tolerant`, the best over the reference answers."""
        references = example.meta["answers"] or [""]
        return {
            "score": int(any(normalised(completion) == normalised(one) for one in references)),
            "tolerant": max(token_f1(completion, one) for one in references),
        }

    @property
    def digest(self) -> str:
        """Digest of everything that decides a score: also all references, and how long texts are cut."""
        total = hashlib.sha256(f"{super().digest} {self.window} {self.stride} {self.longest} {self.null}".encode())
        for part in (self.train, self.validation, self.test, self.heldout):
            for example in part:
                total.update(f"\0{example.meta['start']}\0".encode() + "\0".join(example.meta["answers"]).encode())
        return total.hexdigest()[:32]


def normalised(answer: str) -> str:
    """Return an answer as SQuAD's script compares it: no case, punctuation, articles, or runs of white space.

    Examples:
        >>> normalised("The  Cat's hat.")
        'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words that two answers have in common, as SQuAD's script does; no answer: 1 or 0.

    Examples:
        >>> token_f1("the big cat", "a cat"), token_f1("", "")
        (0.6666666666666666, 1.0)
    """
    ours, theirs = normalised(answer).split(), normalised(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


@register("squad")
@dataclass(frozen=True, kw_only=True)
class Squad(Files):
    """SQuAD 1.1 and 2.0 (Rajpurkar et al., arXiv:1606.05250, 1806.03822; CC BY-SA 4.0), and own data like it.

    `path` is a hub id, a file, or a folder with train*.json and dev*.json. Where there is no test set, the dev set is
    the test set, and validation is cut off train.
    """

    name: str = "squad"
    path: str | None = "rajpurkar/squad"
    window: int = 384
    stride: int = 128
    longest: int = 30
    n_validation: int | None = 1000
    n_heldout: int | None = 256
    lr: float = 1e-3
    head_lr: float | None = 1e-3
    steps: int = 1000
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, least, most in (("window", 16, 10**5), ("stride", 0, self.window // 2), ("longest", 1, 10**4)):
            if not least <= getattr(self, key) <= most:
                raise UserError(f"task.{key}={getattr(self, key)}: must be between {least} and {most:,}")
        if self.template is not None:
            raise UserError(f"task.template={self.template}: {self.name} reads question and context")

    def load(self, data_seed: int) -> Task:
        """Read and split the questions; UserError names the place of one that cannot be used."""
        rows = self._rows()
        official = {part: [question(row) for row in some] for part, some in rows.items()}
        if said := "test" not in official and "validation" in official:
            official["test"] = official.pop("validation")
        sizes = Sizes(self.n_train, self.n_validation, self.n_test, self.n_heldout)
        splits, notes = split(official, sizes, data_seed, self.name)
        null = any(not example.answer for some in official.values() for example in some)
        if said:
            notes["data"] += "; the dev set is the test set, validation is cut off train"
        return QuestionTask(
            name=self.name,
            kind="question_answering",
            **splits,
            labels=("start", "end"),
            metric="exact_match",
            corpus="answers",
            window=self.window,
            stride=self.stride,
            longest=self.longest,
            null=null,
            max_new_tokens=1,
            lr=self.lr,
            head_lr=self.head_lr,
            steps=self.steps,
            batch_size=self.batch_size,
            notes=with_remarks(notes, rows),
        )

    def _rows(self) -> dict[str, Rows]:
        files = {key: existing(path, f"task.{key}") for key in ("train", "validation", "test")
                 if (path := getattr(self, key)) is not None}  # fmt: skip
        local = Path(self.path or "").expanduser()
        if self.path and local.is_dir():
            files = _folder(local) | files
        elif self.path and local.is_file():
            files = {"train": local} | files
        elif self.path and looks_local(self.path):
            raise UserError(f"task.path={self.path}: no such file or folder")
        if not files:
            return read_hub(str(self.path), self.subset, Format(used=FIELDS))
        if "train" not in files:
            raise UserError(f"task={self.name}: no training questions; give task.train=<file>")
        return {key: read_questions(file) for key, file in files.items()}


def _folder(folder: Path) -> dict[str, Path]:
    """Return {split: file} of a folder: train*.json, dev*.json, ..."""
    found: dict[str, Path] = {}
    for key, stems in ALIASES.items():
        named = sorted(path for stem in stems for path in folder.glob(f"{stem}*.json*") if path.is_file())
        if len(named) > 1:
            both = " and ".join(path.name for path in named[:2])
            raise UserError(f"task.path={folder}: holds {both}; say which with task.{key}=<file>")
        if named:
            found[key] = named[0]
    return found


def read_questions(path: Path) -> Rows:
    """Return the questions of a file: SQuAD's own (data, paragraphs, qas), or rows with question, context, answers.

    Raises:
        UserError: not JSON, or another structure; names article, paragraph and question.
    """
    if suffix_of(path) == ".json":
        found = parsed(whole(path), str(path))
        if isinstance(found, dict) and isinstance(found.get("data"), list):
            return Rows(list(_nested(found["data"], str(path))))
    return read(path, Format(used=FIELDS))


def _nested(articles: Sequence[Any], where: str) -> Any:
    for a, article in enumerate(articles, start=1):
        place = f"{where}, article {a}"
        for p, paragraph in enumerate(_list((place, article), "paragraphs"), start=1):
            inner = f"{place}, paragraph {p}"
            for q, asked in enumerate(_list((inner, paragraph), "qas"), start=1):
                row = (f"{inner}, question {q}", asked)
                answers = _list(row, "answers") if not asked.get("is_impossible") else []
                fields = {"question": value(row, "question"), "context": value((inner, paragraph), "context")}
                yield row[0], {**fields, "answers": answers}


def _list(row: tuple[str, Any], key: str) -> list[Any]:
    if not isinstance(row[1], dict):
        raise UserError(f"{row[0]}: not a JSON object but {type(row[1]).__name__}")
    found = value((row[0], row[1]), key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise UserError(f"{row[0]}: field {key!r} is no list of objects")
    return found


def question(row: Row) -> Example:
    """Return one question as an example.

    Raises:
        UserError: an answer does not stand where it is said to; names the place.
    """
    where, asked = row[0], text(row, "question")
    written(row, "context")
    context, answers = value(row, "context"), value(row, "answers")
    if isinstance(answers, dict):  # as `datasets` has them
        texts, starts = (list(answers.get(key, ())) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise UserError(f"{where}: {len(texts)} answers, {len(starts)} starts")
        answers = [{"text": words, "answer_start": start} for words, start in zip(texts, starts, strict=True)]
    if not isinstance(answers, list | tuple):
        raise UserError(f"{where}: field 'answers' is no list of answers")
    if not isinstance(context, str) or not context.strip():
        raise UserError(f"{where}: field 'context' is empty or no text")
    found = []
    for number, answer in enumerate(answers, start=1):
        place = (f"{where}, answer {number}", answer if isinstance(answer, dict) else {})
        words, start = value(place, "text"), value(place, "answer_start")
        if not isinstance(words, str) or not words or not isinstance(start, int) or isinstance(start, bool):
            raise UserError(f"{place[0]}: needs a text, and answer_start, its first character's number")
        if start < 0 or context[start : start + len(words)] != words:
            raise UserError(f"{place[0]}: {words!r} does not stand at character {start} of the context")
        found.append((words, start))
    prompt = f"{asked}\n{context}"
    first, start = found[0] if found else ("", 0)
    meta = {"question": asked, "context": context, "answers": [words for words, _ in found], "start": start}
    return Example(prompt_id(prompt), prompt, first, meta=meta)
