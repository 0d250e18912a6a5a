"""Rescoring real GSM8K golds, turned into completions, under every published rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorax.errors import UserError
from lorax.records import RunRecord, Store, run_id
from lorax.reports.rescore import rescore_items, rescored, runs_of_sweep, write_rescored

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k" / "test.jsonl"
FEW = ["18", "3", "70,000", "-5"]


def golds():
    """Real golds where the data set is at hand, else five of their kinds."""
    if GSM8K.is_file():
        return [json.loads(line)["answer"].rpartition("####")[2].strip() for line in GSM8K.read_text().splitlines()]
    return FEW


def items(answers, template, **extra):
    return [
        {"id": str(i), "split": "test", "score": 1, "completion": template.format(answer), "answer": answer} | extra
        for i, answer in enumerate(answers)
    ]


def misread(answers, template):
    table = rescore_items(items(answers, template))
    return len(answers) - table.groupby("rule")["score"].sum()


def test_published_rules_misread_the_golds_as_published():
    """Counts follow from the golds themselves: commas, signs and decimals are what each rule trips over."""
    answers = golds()
    wrong = misread(answers, "so it is\n#### {}")
    assert wrong["hash_int"] == sum("," in answer or answer.startswith("-") for answer in answers)
    assert wrong["lm_eval_strict"] == wrong["last_number"] == 0
    assert wrong["metamath"] == len(answers), "it never says the sentence"
    spoken = misread(answers, "The answer is: {}")
    assert spoken["hash_int"] == spoken["lm_eval_strict"] == len(answers)
    assert spoken["last_number"] == 0 and spoken["metamath"] <= 2


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    answers = golds()[:200] if len(golds()) > 5 else FEW * 10
    for name, template in (("lora", "#### {}"), ("pissa", "The answer is: {}")):
        for seed in (0, 1):
            identity = {"init": {"name": name}, "seed": seed}
            config = {"init": {"name": name}, "seed": seed}
            record = RunRecord(run_id(identity), "math", "finished", config, identity, task={"name": "gsm8k"})
            store.write(record, items(answers, template))
    return store


def test_the_leader_depends_on_the_rule_and_the_text_says_so(store):
    text, paths = write_rescored(store, "math")
    assert [path.name for path in paths] == ["math.rescored.md", "math.rescored.csv"]
    assert "would put lora first" in text and "would put pissa first" in text
    assert "gsm8k: the same completions score up to 100.0 points apart by rule alone." in text
    table = rescored(store, runs_of_sweep(store.read("math"))).set_index(["row", "rule", "seed"])["score"]
    assert table["lora", "lm_eval_strict", 0] == 1 and table["pissa", "lm_eval_strict", 0] == 0


def test_a_seed_scored_twice_counts_once(store):
    again = {"init": {"name": "lora"}, "seed": 0, "evaluate": "both"}
    record = RunRecord(run_id(again), "math", "finished", again, again, task={"name": "gsm8k"})
    store.write(record, items(FEW, "#### {}"))
    assert set(rescored(store, runs_of_sweep(store.read("math"))).groupby(["row", "rule"])["run_id"].nunique()) == {2}


def test_without_completions_one_line_says_so(tmp_path):
    store = Store(tmp_path)
    store.write(RunRecord("ab", "math", "finished", {"init": {"name": "lora"}}, {"init": {"name": "lora"}}), [])
    with pytest.raises(UserError, match="no run of this name kept completions"):
        write_rescored(store, "math")
