"""A toy model, toy tasks and small helpers for the tests of training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lorax.forward.modality import modality_of
from lorax.models.registry import load


def encode(task, loaded, split, shots=False):
    """The rows of one split of a task."""
    return modality_of(loaded).encode(task, split, shots)


@pytest.fixture(scope="session")
def toy():
    """The toy language model, fp32; `toy(labels=[...])` for classification, `toy(dtype=...)`."""

    def make(labels=None, dtype="float32", **spec):
        return load({"name": "toy", "hidden": 32, **spec}, labels=labels, dtype=dtype)

    return make


@pytest.fixture
def sums():
    """A task of sums: prompts and answers of uneven length, train and test disjoint."""
    return make_sums()


@pytest.fixture(scope="session")
def fresh_sums():
    """Makes the task of sums, for fixtures that outlive a test."""
    return make_sums


def make_sums():
    examples = [_example(f"{a}+{b}=", str(a * b + a)) for a in range(12) for b in range(0, 120, 10)]
    return _task(examples, kind="generation", max_new_tokens=6)


@pytest.fixture
def parity():
    """A task with two classes."""
    examples = [
        _example(f"{a} and {b}", "odd" if a + b & 1 else "even", (a + b) & 1) for a in range(12) for b in range(9)
    ]
    return _task(examples, kind="classification", labels=("even", "odd"))


@pytest.fixture(autouse=True)
def _fp32():
    torch.set_default_dtype(torch.float32)
    yield


def _example(prompt, answer, label=None):
    return SimpleNamespace(id=prompt, prompt=prompt, answer=answer, label=label, meta={}, pair=None)


def _task(examples, **fields):
    def score(example, completion):
        return {"score": int(completion == example.answer), "tolerant": int(example.answer in completion)}

    parts = {"train": examples[24:], "validation": examples[:6], "test": examples[6:24], "heldout": []}
    defaults = {"name": "toy", "system": None, "shots": tuple(examples[:2]), "labels": None, "max_new_tokens": None}
    return SimpleNamespace(**{**defaults, **parts, "score": score, **fields})
