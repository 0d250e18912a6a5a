"""Splits: disjoint, fixed by the data seed, and honest about how many prompts there are."""

import itertools
import json
import random

import pytest

from lorax.errors import UserError
from lorax.tasks import load
from lorax.tasks.base import SPLITS, Example, prompt_id
from lorax.tasks.reasoning import bucket, effective_size
from lorax.tasks.splitting import Sizes, split

SUM = {"name": "chain_sum", "family": "reasoning_gym", "n_train": 200, "n_validation": 30, "n_test": 60, "shots": 2,
       "settings": {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 2}}  # fmt: skip
REVERSAL = {"name": "word_sequence_reversal", "family": "reasoning_gym", "n_train": 50, "n_validation": 5, "n_test": 20}
TOY = {"name": "toy"}


def ids(task, part):
    return {example.id for example in getattr(task, part)}


@pytest.mark.parametrize("spec", [SUM, REVERSAL, TOY], ids=lambda spec: spec["name"])
def test_no_prompt_changes_its_split_between_data_seeds(spec):
    tasks = [load(spec, data_seed) for data_seed in range(3)]
    for one, other in itertools.product(tasks, tasks):
        for left, right in itertools.permutations((*SPLITS, "shots"), 2):
            assert not ids(one, left) & ids(other, right)
    assert tasks[0].digest != tasks[1].digest
    for task in tasks:
        assert all(len(ids(task, part)) == len(getattr(task, part)) for part in SPLITS)


@pytest.mark.parametrize("spec", [SUM, TOY], ids=lambda spec: spec["name"])
def test_the_same_data_seed_gives_the_same_task(spec):
    assert load(spec, 3) == load(spec, 3)
    assert load(spec, 3).digest == load(spec, 3).digest


def test_neighbouring_data_seeds_share_no_more_than_chance():
    """In reasoning-gym item i of seed s + 1 is item i + 1 of seed s; our pools must not be such shifts."""
    one, other = ids(load(REVERSAL, 0), "train"), ids(load(REVERSAL, 1), "train")
    assert not one & other


@pytest.mark.parametrize("size", [50, 400, 5000])
def test_population_size_is_estimated(size):
    generator = random.Random(0)
    estimate = effective_size([str(generator.randrange(size)) for _ in range(2000)])
    assert estimate == pytest.approx(size, rel=0.1)


def test_a_common_half_counts_as_repetition():
    """Half of all draws from 100 prompts, half from 10^6: about 400 effective ones, not a million."""
    generator = random.Random(0)
    draws = [
        str(generator.randrange(100)) if generator.random() < 0.5 else str(generator.random()) for _ in range(2000)
    ]
    assert effective_size(draws) == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize("spec", [
    SUM | {"settings": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}},
    SUM | {"settings": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}, "n_train": 400},
    TOY | {"length": 3},
])  # fmt: skip
def test_more_than_a_tenth_of_the_prompts_is_refused(spec):
    with pytest.raises(UserError, match="distinct prompts"):
        load(spec, 0)


def test_shares_of_the_hash_buckets():
    buckets = [bucket(prompt_id(str(number))) for number in range(4000)]
    assert buckets.count("test") / 4000 == pytest.approx(0.30, abs=0.03)
    assert buckets.count("shots") / 4000 == pytest.approx(0.05, abs=0.02)


def examples(prompts):
    return [Example(prompt_id(prompt), prompt, "x") for prompt in prompts]


def test_official_test_set_stays_and_takes_its_prompts_out_of_train():
    official = {"train": examples(f"q{i}" for i in range(100)), "test": examples(f"Q{i} " for i in range(90, 110))}
    splits, notes = split(official, Sizes(), 0, "own")
    assert {e.prompt for e in splits["test"]} == {f"Q{i} " for i in range(90, 110)}
    assert notes["duplicates"] == 10
    assert sum(len(splits[part]) for part in ("train", "validation", "heldout")) == 90
    again, _ = split({"train": official["train"][::-1], "test": official["test"]}, Sizes(), 0, "own")
    assert splits == again  # the order of the file does not matter


def test_a_prompt_repeated_in_an_official_test_set_stays_there_and_nowhere_else():
    official = {"train": examples(f"q{i}" for i in range(50)), "test": examples(["q1", "q1", "q2"])}
    splits, _ = split(official, Sizes(), 0, "own")
    assert len({e.id for e in splits["test"]}) == len(splits["test"]) == 3
    assert not {"q1", "q2"} & {e.prompt for part in ("train", "validation", "heldout") for e in splits[part]}


def test_one_file_is_cut_into_all_splits_and_limits_only_shorten():
    pool = {"train": examples(map(str, range(200)))}
    whole, _ = split(pool, Sizes(), 0, "own")
    short, _ = split(pool, Sizes(n_train=20, n_test=10), 0, "own")
    assert [len(whole[part]) for part in SPLITS] == [137, 16, 40, 7]
    assert short["train"] == whole["train"][:20] and short["test"] == whole["test"][:10]
    assert whole["train"] != split(pool, Sizes(), 1, "own")[0]["train"]
    with pytest.raises(UserError, match="too few"):
        split({"train": examples(["a"])}, Sizes(), 0, "own")


@pytest.mark.parametrize("change, words", [
    ({"family": "reasoning_gim"}, "did you mean 'reasoning_gym'"),
    ({"ntrain": 3}, "did you mean 'n_train'"),
    ({"generator": "chainsum"}, "did you mean 'chain_sum'"),
    ({"settings": {"min_term": 1}}, "did you mean 'min_terms'"),
    ({"settings": {"min_terms": -1}}, "must be positive"),
    ({"n_test": 0}, "at least 1"),
    ({"lr": -1}, "positive"),
])  # fmt: skip
def test_bad_options_are_one_clear_line(change, words):
    with pytest.raises(UserError, match=words) as caught:
        load(SUM | change, 0)
    assert "\n" not in str(caught.value)


def test_scores_and_majority():
    task = load(TOY, 0)
    example = task.test[0]
    assert task.score(example, f" {example.answer}\n") == {"score": 1, "tolerant": 1}
    assert task.score(example, f"It is {example.answer.upper()}.") == {"score": 0, "tolerant": 1}
    assert task.score(example, "z") == {"score": 0, "tolerant": 0}
    assert 0.15 < task.majority < 0.35
    assert load(REVERSAL, 0).majority is None
    assert json.loads(json.dumps(task.notes)) == task.notes
