"""Procedural, verifiable tasks from reasoning-gym (arXiv:2505.24760): one loader for all its generators."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, cast

from lorax.errors import UserError, near
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.registry import register
from lorax.tasks.splitting import Splits

SYSTEM = "Answer with only the final answer."
SHARES = {"test": 0.30, "validation": 0.15, "heldout": 0.10, "shots": 0.05, "train": 0.40}
"""Share of all prompts that may enter each split, by the prompt's hash."""
PROBE = 2000
"""Least number of prompts drawn to estimate how many there are."""
LIMIT = 200_000
"""Most prompts drawn in search of distinct ones."""


@register("reasoning_gym")
@dataclass(frozen=True, kw_only=True)
class ReasoningGym:
    """A reasoning-gym generator with its settings.

    One pool is drawn per data seed and de-duplicated. A prompt's hash alone decides which split it may enter,
    whatever the data seed and the sizes: no prompt is trained on in one run and tested in another.
    """

    name: str
    generator: str | None = None
    """The generator's name in reasoning-gym; null: the task's name."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The generator's own settings."""
    n_train: int = 800
    n_validation: int = 100
    n_test: int = 200
    n_heldout: int = 64
    shots: int = 0
    """Worked examples for few-shot prompts."""
    system: str | None = SYSTEM
    max_new_tokens: int = 32
    tolerant: str = "auto"
    """The extractor of the format-tolerant score; auto: `number` if all answers are numbers, else `text`."""
    lr: float = 1e-3
    steps: int = 100
    batch_size: int = 8

    def load(self, data_seed: int) -> Task:
        """Draw the pool and fill the splits.

        Raises:
            UserError: no such generator or setting; more examples than a tenth of the distinct prompts.
        """
        wanted = {
            "train": self.n_train, "validation": self.n_validation, "test": self.n_test,
            "heldout": self.n_heldout, "shots": self.shots,
        }  # fmt: skip
        generator = self.generator or self.name
        draw = sum(wanted.values())
        stream = _stream(generator, dict(self.settings or {}), data_seed)
        probe = list(islice(stream, max(PROBE, 4 * draw)))
        distinct, bound = effective_size([example.id for example in probe]), len(probe) * (len(probe) - 1) / 2
        if draw > distinct / 10:
            raise UserError(
                f"task={self.name}: {draw} examples asked for, but {generator} with these settings has only about "
                f"{distinct:.0f} distinct prompts; at most a tenth, {distinct / 10:.0f}, may be drawn"
            )
        splits, drawn, repeats = fill(wanted, iter(probe), stream, self.name)
        tolerant = self.tolerant
        if tolerant == "auto":
            answers = [example.answer for split in wanted for example in cast(dict[str, Any], splits)[split]]
            tolerant = "number" if all(map(_is_number, answers)) else "text"
        return Task(
            name=self.name,
            kind="generation",
            **splits,
            system=self.system,
            max_new_tokens=self.max_new_tokens,
            tolerant=tolerant,
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            notes={"distinct_prompts": None if distinct >= bound else distinct, "drawn": drawn, "duplicates": repeats},
        )


def effective_size(ids: list[str]) -> float:
    """Estimate how many distinct prompts a generator has, from how often draws meet.

    Of n independent draws, n (n - 1) / 2 pairs meet with probability sum_i p_i^2 each, so

        N = n (n - 1) / (2 * pairs that met)

    estimates 1 / sum_i p_i^2: the number of prompts if all are equally likely, and fewer if some are more
    likely than others. That smaller number is the one that decides how often prompts repeat.

    Args:
        ids: prompt ids of independent draws, repetitions included.

    Returns:
        The estimate; if no two draws met, n (n - 1) / 2, a lower bound.

    Examples:
        >>> effective_size(["a", "b", "a", "c"])
        6.0
    """
    n = len(ids)
    met = sum(count * (count - 1) // 2 for count in Counter(ids).values())
    return n * (n - 1) / 2 / max(met, 1)


def bucket(identity: str) -> str:
    """Return the split that a prompt may enter; follows from its hash alone.

    Examples:
        >>> bucket(prompt_id("What is 1 + 1?")) in SHARES
        True
    """
    place = int(hashlib.sha256(f"split {identity}".encode()).hexdigest()[:13], 16) / 16**13
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    return "train"


def fill(
    wanted: Mapping[str, int], probe: Iterator[Example], stream: Iterator[Example], name: str
) -> tuple[Splits, int, int]:
    """Fill every split in order of drawing, each prompt once and only where its hash allows.

    Returns:
        The splits, how many examples were drawn, and how many of them repeated an earlier prompt.

    Raises:
        UserError: `LIMIT` draws did not fill them.
    """
    splits: dict[str, list[Example]] = {split: [] for split in SHARES}
    seen: set[str] = set()
    missing, drawn, repeats = sum(wanted.values()), 0, 0
    for example in chain(probe, stream):
        if not missing or drawn == LIMIT:
            break
        drawn += 1
        if example.id in seen:
            repeats += 1
            continue
        seen.add(example.id)
        split = bucket(example.id)
        if len(splits[split]) < wanted[split]:
            splits[split].append(example)
            missing -= 1
    if missing:
        raise UserError(f"task={name}: {missing} examples still missing after {drawn} draws, {repeats} of them repeats")
    done = {split: tuple(examples) for split, examples in splits.items()}
    return cast(Splits, done), drawn, repeats


def _stream(generator: str, settings: dict[str, Any], data_seed: int) -> Iterator[Example]:
    """Yield examples without end. The seed is hashed: neighbouring seeds of reasoning-gym share all items but one."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if generator not in DATASETS:
        raise UserError(f"task.generator={generator}: not in reasoning-gym; {near(generator, DATASETS)}")
    seed = int(hashlib.sha256(f"pool {generator} {data_seed}".encode()).hexdigest()[:8], 16) // 2
    known = [key for key in DATASETS[generator][1].__dataclass_fields__ if key not in ("seed", "size")]
    for key in settings:
        if key not in known:
            raise UserError(f"task.settings.{key}: {generator} has no such setting; {near(key, known)}")
    try:
        dataset = reasoning_gym.create_dataset(generator, seed=seed, size=LIMIT + 1, **settings)
        dataset[0]
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"task.settings: {generator}: {str(error).strip() or 'value out of range'}") from error
    for index in range(LIMIT + 1):
        row = dataset[index]
        prompt, answer = str(row["question"]).strip(), str(row["answer"]).strip()
        yield Example(prompt_id(prompt), prompt, answer)


def _is_number(answer: str) -> bool:
    try:
        float(answer.replace(",", ""))
    except ValueError:
        return False
    return True
