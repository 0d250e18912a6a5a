"""A pool of tasks: one shuffle, no prompt in two splits, the union of classes, each part scored as it is alone."""

import json

import pytest

from lorax.errors import UserError
from lorax.evaluation.evaluate import summarise
from lorax.records.integrity import means_of
from lorax.tasks.registry import build, load


def classes(folder, name, rows):
    """A file for each split of a classification task: {split: [(text, label)]}."""
    files = {}
    for split, pairs in rows.items():
        files[split] = str(folder / f"{name}_{split}.jsonl")
        lines = [json.dumps({"text": words, "label": label}) for words, label in pairs]
        (folder / f"{name}_{split}.jsonl").write_text("\n".join(lines))
    return {"name": "text_classification", "n_heldout": 0, **files}


@pytest.fixture
def two(tmp_path):
    first = {
        "train": [(f"a {i}", "x" if i % 2 else "y") for i in range(20)] + [("both", "x"), ("asked of b", "y")],
        "validation": [("va", "x"), ("test of b", "y")],
        "test": [("ta", "x"), ("tested twice", "y")],
    }
    second = {
        "train": [(f"b {i}", "x" if i % 2 else "z") for i in range(30)] + [("both", "z"), ("va", "z")],
        "validation": [("asked of b", "z")],
        "test": [("test of b", "z"), ("tested twice", "x"), ("tb", "z")],
    }
    parts = {"a": classes(tmp_path, "a", first), "b": classes(tmp_path, "b", second)}
    return {"name": "pooled", "parts": parts}


def prompts(task, split):
    return [example.prompt for example in task.examples(split)]


def test_parts_are_shuffled_together_and_no_prompt_is_in_two_splits(two):
    task = load(two)
    assert task.name == "pooled_a_b" and len(task.train) == 20 + 30 + 1  # "both" once, three are in other splits
    places = [example.meta["task"] for example in task.train]
    assert places.count("a") == 21 and places != sorted(places) and len(set(places[:12])) == 2
    splits = {split: set(prompts(task, split)) for split in ("train", "validation", "test")}
    assert splits["test"] == {"ta", "tested twice", "test of b", "tb"} and len(task.test) == 5
    assert splits["validation"] == {"va", "asked of b"}  # "test of b" is a test prompt
    assert not splits["train"] & (splits["validation"] | splits["test"]) and "both" in splits["train"]
    assert len({example.id for example in task.test}) == 5
    assert "dropped 4 prompts that stand in two parts" in task.notes["data"]
    again, other = load(two), load(two, 1)
    assert again == task and again.digest == task.digest
    assert prompts(other, "train") != prompts(task, "train") and prompts(other, "test") == prompts(task, "test")


def test_classes_are_the_union_and_every_example_has_its_own(two):
    task = load(two)
    assert task.labels == ("x", "y", "z") and task.kind == "classification" and task.head_lr == 1e-2
    assert all(
        task.labels[each.label] == each.answer for split in ("train", "test") for each in task.examples(split)
    )  # fmt: skip


def test_the_mean_is_over_parts_whatever_their_sizes(two):
    task = load(two)
    answers = {"ta": "x", "tested twice": "y", "tb": "z", "test of b": "x"}
    items = [{"split": "test", "loss": 1.0, **task.score(each, answers[each.prompt])} for each in task.test]
    found = summarise(items)  # a: 2 of 2; b: "tested twice" is x there, "test of b" is z
    assert found["tasks"]["a"] == {"score": 1.0, "tolerant": 1.0, "loss": 1.0, "n": 2}
    assert found["tasks"]["b"]["score"] == pytest.approx(1 / 3) and found["tasks"]["b"]["n"] == 3
    assert found["score"] == pytest.approx((1 + 1 / 3) / 2) and found["n"] == 5 and found["mean_over"] == "tasks"
    kept = means_of(items)["test"]
    assert all(kept[key] == pytest.approx(found[key]) for key in ("score", "tolerant", "loss", "n"))
    shares = [task.sources[name].majority for name in "ab"]
    assert task.majority == pytest.approx(sum(shares) / 2)


def test_generation_scores_each_part_by_its_own_rule(tmp_path):
    def part(name, answer, **fields):
        lines = [json.dumps({"prompt": f"{name} {i}", "answer": answer(i)}) for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        return {"name": "jsonl", "path": str(tmp_path / f"{name}.jsonl"), "shots": 2, **fields}

    sums = part("sums", str, tolerant="number")
    words = part("words", lambda i: f"w{i}", max_new_tokens=80)
    task = load({"name": "mine", "family": "pooled", "parts": {"sums": sums, "words": words}, "steps": 7})
    assert task.name == "mine" and task.max_new_tokens == 80 and task.steps == 7 and task.shots == ()
    assert task.lr == 1e-3 and task.labels is None and task.majority is None
    of = next(each for each in task.test if each.meta["task"] == "sums")
    assert task.score(of, f"So {of.answer} apples") == {"task": "sums", "score": 0, "tolerant": 1}
    of = next(each for each in task.test if each.meta["task"] == "words")
    assert task.score(of, f"So {of.answer} apples") == {"task": "words", "score": 0, "tolerant": 0}
    assert task.score(of, f"Sorted:\n{of.answer}") == {"task": "words", "score": 0, "tolerant": 1}
    renamed = load({"name": "mine", "family": "pooled", "parts": {"plus": sums, "words": words}})
    assert renamed.digest != task.digest  # the record's scores have other names


BAD = [
    ({"parts": ["a", "b"]}, r"task.parts=\['a', 'b'\]: the fields of each task are needed"),
    ({"parts": {"a": "banking77"}}, "task.parts.a: the fields of a task are needed"),
    ({"parts": {"a": {"name": "toy", "lenght": 2}}}, "task.parts.a.*lenght.*did you mean 'length'"),
    ({"parts": {"a": {"name": "pooled", "parts": {}}}}, "task.parts.a: has parts itself"),
    ({"parts": {"a": {"name": "toyy"}}}, "task.parts.a: task=toyy is unknown"),
    ({"batch_size": 0}, "task.batch_size=0"),
]


@pytest.mark.parametrize("fields, line", BAD)
def test_bad_parts_are_one_line(fields, line):
    with pytest.raises(UserError, match=line) as caught:
        build({"name": "pooled", **fields})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


TOY = {"name": "toy", "n_train": 8, "n_validation": 2, "n_test": 2}


@pytest.mark.parametrize(
    "parts, line",
    [
        ({}, "at least two parts are needed, not 0"),
        ({"a": TOY}, "at least two parts are needed, not 1"),
        ({"a": TOY, "b": {**TOY, "kind": "classification"}}, "one kind for all, not a: generation, b: classification"),
        ({"a": TOY, "b": {"name": "jsonl", "path": "no.jsonl"}}, "task.parts.b.*no.jsonl"),
    ],
)
def test_parts_that_make_no_pool_are_one_line(parts, line):
    with pytest.raises(UserError, match=line) as caught:
        load({"name": "pooled", "parts": parts})
    assert "\n" not in str(caught.value)


def test_two_system_texts_make_no_pool(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"prompt": f"p{i}", "answer": "x"}) for i in range(40)))
    one = {"name": "jsonl", "path": str(tmp_path / "a.jsonl")}
    with pytest.raises(UserError, match="one system for all, not a: None, b: Be brief."):
        load({"name": "pooled", "parts": {"a": one, "b": {**one, "system": "Be brief."}}})
