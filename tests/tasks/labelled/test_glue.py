"""GLUE's sets from small archives and a stand-in of the hub; BoolQ; pairs and numbers of one's own."""

import json

import datasets
import pytest

from lorax.errors import UserError
from lorax.tasks.labelled.glue import SETS
from lorax.tasks.registry import load

SMALL = {"n_validation": 3, "n_heldout": 0}


def archive(folder, subset, n=20):
    """Write a set as GLUE's archive has it: its own header, or none, and numbers or names as classes."""
    one = SETS[subset]
    target = folder / one.folder
    target.mkdir()
    for name in ("train", *one.dev):
        lines = ["\t".join(one.local or (*one.fields, "label"))] if one.columns is None else []
        for at in range(n):
            word = f'{name} "{at}'  # a quote is a character
            label = str(at % 5 / 2) if not one.classes else str(at % 2) if subset not in ("mnli", "rte", "qnli") else (
                one.classes[at % len(one.classes)])  # fmt: skip
            lines.append(f"gj04\t{label}\t*\t{word}" if one.columns else "\t".join(
                [word, *(["second"] if len(one.fields) > 1 else []), label]))  # fmt: skip
        (target / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


def stand_in(monkeypatch, subset, n=20):
    """Answer for the hub with a dataset that has its columns, class names and splits."""
    one = SETS[subset]

    def made(name):
        features = {field: datasets.Value("string") for field in one.fields}
        features["label"] = datasets.ClassLabel(names=list(one.classes)) if one.classes else datasets.Value("float32")
        features["idx"] = datasets.Value("int32")
        columns = {field: [f'{name} "{at}' if field == one.fields[0] else "second" for at in range(n)]
                   for field in one.fields}  # fmt: skip
        hidden = [-1] * n
        labels = hidden if name == "test" else [at % len(one.classes) if one.classes else at % 5 / 2 for at in range(n)]
        return datasets.Dataset.from_dict(
            {**columns, "label": labels, "idx": list(range(n))}, datasets.Features(features)
        )

    splits = ("validation_matched", "validation_mismatched") if subset == "mnli" else ("validation",)
    found = datasets.DatasetDict({name: made(name) for name in ("train", *splits, "test")})

    def load_dataset(path, configuration, revision=None):
        assert (path, configuration) == ("nyu-mll/glue", subset)
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize("subset", SETS)
def test_a_set_is_the_same_from_the_archive_and_from_the_hub(tmp_path, monkeypatch, subset):
    spec = {"name": f"glue_{subset}", "family": "glue", "subset": subset, **SMALL}
    local = load({**spec, "path": archive(tmp_path, subset)}, 0)
    stand_in(monkeypatch, subset)
    hub = load(spec, 0)
    sizes = [len(local.examples(part)) for part in ("train", "validation", "test")]
    assert (
        sizes
        == [18, 2, 40 if subset == "mnli" else 20]
        == [len(hub.examples(part)) for part in ("train", "validation", "test")]
    )
    assert local.labels == hub.labels or subset == "stsb"  # named by their column: score, label
    assert [e.prompt.split('"')[0] for e in hub.train] == ["train "] * 18
    assert {e.prompt.split('"')[0].split("_")[0].strip() for e in hub.test} == {"validation"}
    assert "the dev set is the test set" in hub.notes["data"]
    assert hub.notes == local.notes | {"hub": {"hub": "nyu-mll/glue"}}
    assert hub.corpus == SETS[subset].corpus
    assert all((e.pair is not None) == (len(SETS[subset].fields) > 1) for e in hub.test)
    if subset == "mnli":
        assert [e.meta["part"] for e in hub.test] == ["matched"] * 20 + ["mismatched"] * 20
        assert hub.notes["duplicates"] == 0
    if subset == "stsb":
        always = sum(max(0, 1 - abs(float(e.answer) - hub.center) / 2) for e in hub.test) / 20
        assert hub.kind == "regression" and hub.majority == pytest.approx(always)
    elif subset in ("cola", "wnli", "sst2"):  # numbers in the archive, names on the hub
        assert set(local.labels) == set(SETS[subset].classes)


def test_mnli_keeps_mismatched_out_of_train(tmp_path):
    folder = archive(tmp_path, "mnli")
    shared = (tmp_path / "MNLI" / "train.tsv").read_text().splitlines()[:9]  # eight of the twenty training rows
    (tmp_path / "MNLI" / "dev_mismatched.tsv").write_text("\n".join(shared) + "\n")
    task = load({"name": "glue_mnli", "family": "glue", "subset": "mnli", "path": folder, **SMALL}, 0)
    assert len(task.test) == 28 and len(task.train) + len(task.validation) == 12
    assert len({example.id for example in task.test}) == 28


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "CoLA" / "dev.tsv").unlink(), r"CoLA: holds no dev.tsv, which cola needs"),
    (lambda f: (f / "CoLA" / "dev.tsv").write_text("a\t2\t*\tb\n"), r"dev.tsv, line 1: label '2'; "),
    (lambda f: (f / "CoLA" / "dev.tsv").write_text("a\t1\t*\tb\nx\t1\n"), r"dev.tsv, line 2: "),
])  # fmt: skip
def test_a_wrong_archive_is_one_line(tmp_path, change, message):
    folder = archive(tmp_path, "cola")
    change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load({"name": "glue_cola", "family": "glue", "subset": "cola", "path": folder, **SMALL}, 0)
    assert "\n" not in str(caught.value)


def test_wrong_options_are_one_line():
    with pytest.raises(UserError, match="task.subset=colla: no set of GLUE; did you mean 'cola'"):
        load({"name": "glue_x", "family": "glue", "subset": "colla"}, 0)
    with pytest.raises(UserError, match="task.second: glue_cola is read as its authors write it"):
        load({"name": "glue_cola", "family": "glue", "second": "x"}, 0)
    with pytest.raises(UserError, match="task.path=./no: no such folder"):
        load({"name": "glue_cola", "family": "glue", "path": "./no"}, 0)
    with pytest.raises(UserError, match="task.second and task.template: a pair of texts"):
        load({"name": "text_classification", "path": "x.csv", "second": "b", "template": "{a}"}, 0)


def test_boolq_is_a_passage_and_a_question(tmp_path, monkeypatch):
    columns = {
        "question": [f"is it {at}" for at in range(20)],
        "answer": [True, False] * 10,
        "passage": ["It is."] * 20,
    }
    made = datasets.Dataset.from_dict(columns)
    found = datasets.DatasetDict({"train": made.select(range(12)), "validation": made.select(range(12, 20))})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset, revision=None: found)
    task = load({"name": "boolq", **SMALL}, 0)
    assert task.labels == ("no", "yes") and len(task.test) == 8 and task.majority == 0.5
    assert {e.pair[0] for e in task.test} == {"It is."} and "validation is cut off train" in task.notes["data"]
    rows = [{"instruction": f"An question: is it {at}?\n\nAnswer format: x", "answer": "true" if at % 2 else "false"}
            for at in range(24)]  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(rows[:16]))
    (tmp_path / "test.json").write_text(json.dumps(rows[16:]))
    task = load({"name": "boolq", "path": str(tmp_path), **SMALL}, 0)
    assert "24 questions without a passage" in task.notes["data"] and task.test[0].prompt.startswith("is it ")
    assert task.test[0].prompt.endswith("?")
    (tmp_path / "test.json").write_text(json.dumps([{**rows[0], "answer": "maybe"}]))
    with pytest.raises(UserError, match="item 1: answer 'maybe'"):
        load({"name": "boolq", "path": str(tmp_path), **SMALL}, 0)


def test_own_pairs_and_own_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"a": f"one {at}", "b": "two", "score": at / 4, "label": "xy"[at % 2]} for at in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = load({"name": "text_classification", "path": str(path), "text": "a", "second": "b", **SMALL}, 0)
    assert task.train[0].pair[1] == "two" and task.train[0].prompt.endswith("\ntwo")
    numbers = load({"name": "text_regression", "path": str(path), "text": "a", "second": "b", **SMALL}, 0)
    values = [float(e.answer) for e in numbers.train]
    assert numbers.center == pytest.approx(sum(values) / len(values)) and numbers.corpus == "correlation"
    joined = load({"name": "text_regression", "path": str(path), "template": "{a} {b}", **SMALL}, 0)
    assert joined.train[0].pair is None and joined.train[0].prompt.endswith(" two")
    for bad, message in (("high", "field 'score' is 'high', no number"), (None, "field 'score' is empty")):
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {**lines[0], "a": "new", "score": bad}]))
        with pytest.raises(UserError, match=f"line 21: {message}"):
            load({"name": "text_regression", "path": str(path), "text": "a", **SMALL}, 0)
    path.write_text("".join(json.dumps({**line, "score": 2}) + "\n" for line in lines))
    with pytest.raises(UserError, match="every training number is 2; there is nothing to learn"):
        load({"name": "text_regression", "path": str(path), "text": "a", **SMALL}, 0)
