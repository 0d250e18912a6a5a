"""Example and Task: what every task family returns, and the rules that families share. Torch-free."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorax.records import canonical
from lorax.tasks import extractors

SPLITS = ("train", "validation", "test", "heldout")


@dataclass(frozen=True)
class Example:
    """One question and its answer."""

    id: str
    """Digest of the prompt: the same prompt has the same id in every run."""
    prompt: str
    answer: str
    """What is trained on: the whole target text, or the class name."""
    label: int | None = None
    """The class, for classification."""
    meta: dict[str, Any] = field(default_factory=dict)
    """gold: what the answer is scored against, where that is not the whole target text; system: the system text of
    the conversation that it was read from; tests: of a program; pair: the two texts that `prompt` joins; part: which
    half of a test set it is from, where there are two; and what a family's own kind of task needs."""
    history: tuple[tuple[str, str], ...] = ()
    """The exchanges before the prompt: the user's text and the assistant's, each."""
    system: str | None = None
    """The conversation's own system text, where the task has none for all."""
    all_turns: bool = False
    """Whether the assistant's turns in `history` are trained on too."""
    choices: tuple[str, ...] = ()
    """The answers to choose from, `answer` among them, where there are few."""

    @property
    def pair(self) -> tuple[str, str] | None:
        """The two texts, where there are two."""
        return self.meta.get("pair")

    @property
    def gold(self) -> str:
        """What a completion is scored against."""
        return self.meta.get("gold", self.answer)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples in disjoint splits, how they are prompted and scored, and defaults for training."""

    name: str
    kind: str
    """generation | classification | regression | token_classification | question_answering."""
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    heldout: tuple[Example, ...] = ()
    """Neither trained on nor scored: for gradients at initialisation, under `calibration=heldout`."""
    shots: tuple[Example, ...] = ()
    """Worked examples for few-shot prompts; in no other split."""
    labels: tuple[str, ...] | None = None
    """Class names, in the order of `Example.label`."""
    system: str | None = None
    """The system line of the chat template."""
    max_new_tokens: int = 32
    scoring: str = "generate"
    """generate: a completion is read | likelihood, normalised: the likeliest of the example's `choices` is the answer;
    normalised: by the mean over its tokens, the end token included, instead of the sum."""
    max_length: int | None = None
    """Tokens of a training example at most; what is beyond is cut off. None: as many as the model takes."""
    strict: str = "exact"
    """The extractor behind `score`."""
    tolerant: str = "text"
    """The extractor behind `tolerant`: an answer counts in any wrapping."""
    metric: str = "exact_match"
    """What an item's score is; its mean over the items is what runs are compared by."""
    corpus: str | None = None
    """Further figures that are no means over items, as the literature reports them: see `stats.measures.corpus`."""
    direction: str = "max"
    lr: float = 1e-3
    """Base learning rate: for plain LoRA of rank 8, alpha 16."""
    head_lr: float | None = None
    """Learning rate of a fresh classification head, alike for all methods."""
    steps: int = 100
    batch_size: int = 8
    longest: int | None = None
    """Tokens that the inputs and answers of an encoder-decoder are cut to, which is counted and said; None: what is too
    long for the model is refused, as it is for other models."""
    floor_is: str = "majority class"
    """What `majority` is the score of."""
    parts: tuple[Task, ...] = ()
    """The tasks of a group, which a run learns together; none of a single task."""
    weights: tuple[float, ...] = ()
    """Of the parts' losses; they sum to 1."""
    version: int = 1
    """Raised by a family when the same settings give other examples or another score."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Facts about the data: duplicates removed, distinct prompts (None: too many to estimate), ...; `data`: how many
    rows were read, kept and dropped, and how, as a sentence for the user and the record; `hub`: id and commit of a
    dataset that was read from there."""

    def score(self, example: Example, completion: str) -> dict[str, Any]:
        """Score one completion.

        Args:
            example: the question.
            completion: the decoded answer; the predicted class name for classification.

        Returns:
            score (0 or 1, the task's metric) and tolerant (0 or 1, format aside).
        """
        strict = extractors.get(self.strict).correct(completion, example.gold)
        loose = extractors.get(self.tolerant).correct(completion, example.gold)
        return {"score": strict, "tolerant": max(strict, loose)}

    def overall(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return scores of a whole split that are no means over its items, by name; none by default.

        Args:
            items: of the split, with completion, answer and what `score` returned.
        """
        return {}

    @property
    def majority(self) -> float | None:
        """The test score of always giving train's commonest answer; None where answers hardly repeat.

        "Hardly" means more than 50 different answers, or more than a tenth as many as examples, for
        generation; classes always count. Of a group of tasks: the mean over them, None where one has none.
        """
        if self.parts:
            known = [part.majority for part in self.parts]
            shares = [share for share in known if share is not None]
            return sum(shares) / len(shares) if len(shares) == len(known) else None
        answers = Counter(example.gold for example in self.train)
        if not answers or not self.test:
            return None
        if self.kind == "generation" and len(answers) > min(50, len(self.train) / 10):
            return None
        commonest = min(answers, key=lambda answer: (-answers[answer], answer))
        return sum(example.gold == commonest for example in self.test) / len(self.test)

    @property
    def digest(self) -> str:
        """Digest of everything that decides a score: examples, order, prompts, scoring."""
        return _digest(self)

    def asked(self, split: str, shots: bool = False) -> str:
        """Return the digest of what the rows of a split ask, to the letter and in order, with their expected answers.

        A record holds it for every split that it was scored on. The texts themselves lie in the task's data: an item's
        `row` is the place in its split, and its `id` the digest of its prompt, white space and case aside.
        """
        if self.parts:
            each = [part.asked(split, shots and bool(part.shots)) for part in self.parts]
            return hashlib.sha256(canonical(each).encode()).hexdigest()[:32]
        total = hashlib.sha256(canonical([self.system, self.labels]).encode())
        for example in (*(self.shots if shots else ()), *self.examples(split)):
            total.update(f"\0{example.prompt}\0{example.answer}\0{example.gold}{_context(example)}".encode())
        return total.hexdigest()[:32]

    def examples(self, split: str) -> tuple[Example, ...]:
        """Return one split by name."""
        return getattr(self, split)


def _digest(task: Task) -> str:
    if task.parts:
        each = [[part.name, part.digest] for part in task.parts]
        return hashlib.sha256(canonical(each).encode()).hexdigest()[:32]
    total = hashlib.sha256()
    settings = [task.kind, task.labels, task.system, task.max_new_tokens, task.strict, task.tolerant, task.version]
    settings += [task.scoring] if task.scoring != "generate" else []
    settings += [f"max_length {task.max_length}"] if task.max_length is not None else []
    settings += [] if task.corpus is None else [task.corpus]
    total.update(canonical(settings).encode())
    for split in (*SPLITS, "shots"):
        for example in getattr(task, split):
            text = f"{split}\0{example.prompt}\0{example.answer}\0{example.gold}\0{_context(example)}"
            total.update(text.encode())
            if example.pair is not None:  # encoded otherwise than one text that reads alike
                total.update(f"pair\0{example.pair[0]}\0".encode())
    return total.hexdigest()[:32]


def _context(example: Example) -> str:
    """Return what else decides how an example is asked and scored, as text; "" for a plain one."""
    tests = example.meta.get("tests")
    plain = not (example.history or example.system or example.choices or tests)
    turns = [example.history, example.all_turns] if example.history else []
    return "" if plain else canonical([turns, example.system, example.choices, tests])


def prompt_id(prompt: str) -> str:
    """Return the digest that stands for a prompt; white space and case do not count.

    Examples:
        >>> prompt_id("What is 2 + 2?") == prompt_id(" what is  2 + 2? ")
        True
    """
    return hashlib.sha256(" ".join(prompt.casefold().split()).encode()).hexdigest()[:16]


def unique(examples: Iterable[Example], seen: set[str] | None = None) -> list[Example]:
    """Return the examples whose prompt is not in `seen`, each prompt once, in order; adds them to `seen`."""
    seen = set() if seen is None else seen
    kept = []
    for example in examples:
        if example.id not in seen:
            seen.add(example.id)
            kept.append(example)
    return kept


def shuffled(examples: Sequence[Example], salt: str) -> list[Example]:
    """Return the examples in an order that follows from their prompts and `salt`, not from the file's order."""
    return sorted(examples, key=lambda example: hashlib.sha256(f"{salt} {example.id}".encode()).digest())
