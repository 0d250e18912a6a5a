"""The likeliest of the answers to choose from: sums and means of token losses, in a pack as alone."""

from dataclasses import replace

import pytest
import torch
from small_training import encode

from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.evaluation.evaluate import evaluate
from lorax.initializers.registry import build

CHOICES = ("5", "17", "a long one", "200")


@pytest.fixture
def choices(sums):
    sums.test = [replace(one, answer=CHOICES[i % 4], choices=CHOICES) for i, one in enumerate(sums.test[:6])]
    return sums


@pytest.mark.parametrize("scoring", ["likelihood", "normalised"])
def test_the_answer_is_the_choice_with_the_least_loss(toy, choices, scoring):
    loaded = toy()
    plain = {}
    for choice in CHOICES:  # each as the reference answer of a generation
        choices.test = [replace(one, answer=choice) for one in choices.test]
        (items,) = evaluate(loaded, choices, "test")
        tokens = [len(row.labels) for row in encode(choices, loaded, "test")]
        plain[choice] = [item["loss"] * (count if scoring == "likelihood" else 1)
                         for item, count in zip(items, tokens, strict=True)]  # fmt: skip
    choices.scoring = scoring
    choices.test = [replace(one, answer=CHOICES[i % 4]) for i, one in enumerate(choices.test)]
    (items,) = evaluate(loaded, choices, "test")
    (small,) = evaluate(loaded, choices, "test", batch_size=1)
    for number, item in enumerate(items):
        best = min(CHOICES, key=lambda choice: plain[choice][number])
        assert item["completion"] == best == small[number]["completion"]
        assert item["score"] == int(best == item["answer"])
        own = len(item["answer"]) + 1 if scoring == "likelihood" else 1
        assert item["loss"] * own == pytest.approx(plain[item["answer"]][number], abs=1e-4)


def test_a_pack_chooses_as_its_runs_do_alone(toy, choices):
    loaded = toy()
    choices.scoring = "normalised"
    made = [make_factors(loaded.model, build("lora", shared={"rank": 2, "alpha": 4}, own={}), seed=s) for s in range(2)]
    handles = install(loaded.model, made)
    with torch.no_grad():
        for value in handles[0].parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    together = evaluate(loaded, choices, "test", handles)
    again = evaluate(loaded, choices, "test", handles[::-1], batch_size=3)
    for items, others in zip(together, again[::-1], strict=True):
        assert [item["completion"] for item in items] == [item["completion"] for item in others]
    losses = [torch.tensor([item["loss"] for item in items]) for items in together]
    assert (losses[0] - losses[1]).abs().max() > 1e-2


def test_a_task_without_choices_is_one_line(toy, sums):
    sums.scoring = "likelihood"
    with pytest.raises(UserError, match="task.scoring=likelihood: toy has no choices to score; task.scoring=generate"):
        evaluate(toy(), sums, "test")
