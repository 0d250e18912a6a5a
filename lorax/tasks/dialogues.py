"""Conversations of several turns as examples: which turns are trained on, and none that the test asks. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from lorax.tasks.base import Example, prompt_id
from lorax.tasks.splitting import Splits

TURNS = ("all", "last")


def asked_id(prompt: str, history: Sequence[tuple[str, str]] = (), system: str | None = None) -> str:
    """Return the digest of a question with all that stands before it; that of the prompt where nothing does.

    Examples:
        >>> asked_id("2 + 2?") == prompt_id("2 + 2?") != asked_id("2 + 2?", [("Hi", "Hello")])
        True
    """
    before = [system] if system else []
    before += [f"{question}\0{answer}" for question, answer in history]
    return prompt_id("\0\0".join([*before, prompt]))


def own_system(example: Example) -> Example:
    """Return an example with the system text that it was read with as its own."""
    system = example.meta.get("system")
    return replace(example, id=asked_id(example.prompt, example.history, system), system=system)


def trained_turns(splits: Splits, turns: str) -> tuple[Splits, list[str]]:
    """Mark the turns that are trained on; leave out conversations in which an earlier one is a question of the test.

    Args:
        splits: validation and test are scored on their last turn.
        turns: all | last.

    Returns:
        The splits, and sentences for the user.
    """
    several = sum(bool(example.history) for split in splits.values() for example in cast(tuple[Example, ...], split))
    if not several:
        return splits, []
    total = sum(len(cast(tuple[Example, ...], split)) for split in splits.values())
    which = "all turns" if turns == "all" else "the last turn"
    said = [f"{several:,} of {total:,} are conversations of several turns, loss on {which} of the assistant's"]
    if turns == "last":
        return splits, said
    asked = {example.id for split in (splits["validation"], splits["test"]) for example in split}

    def kept(split: Sequence[Example]) -> tuple[Example, ...]:
        free = [example for example in split if not asked.intersection(_earlier(example))]
        return tuple(replace(example, all_turns=True) if example.history else example for example in free)

    train, heldout = kept(splits["train"]), kept(splits["heldout"])
    left_out = len(splits["train"]) + len(splits["heldout"]) - len(train) - len(heldout)
    if left_out:
        said.append(f"{left_out:,} left out of train: an earlier turn is a question of validation or test")
    return {**splits, "train": train, "heldout": heldout}, said


def _earlier(example: Example) -> list[str]:
    """Return the ids of the questions in an example's history."""
    history = example.history
    return [asked_id(history[place][0], history[:place], example.system) for place in range(len(history))]
