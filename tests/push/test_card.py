"""The card's parts that need no adapter: a study's row, commits, what of a command is nobody else's business."""

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from lorax.models.registry import Loaded
from lorax.push.card import _public, _row, model_card
from lorax.push.folder import Written
from lorax.push.saved import SavedRun
from lorax.reports.main_table import main_table
from lorax.studies.study import read_study


def test_a_run_of_a_study_has_its_row_with_the_interval(demo):
    study, store = read_study(demo.spec, demo.store), demo.store
    table = main_table(study).set_index(["task", "arm"])
    task = study.spec.tasks[0]
    arm = next(label for label in study.spec.labels if label != study.spec.reference)
    final = next(iter(study.finals[task, arm].values()))
    text = _row(SavedRun(store, final, store.root, {}))
    row = table.loc[task, arm]
    assert f"{100 * row['mean']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in text
    assert row["verdict_words"] in text and study.spec.reference in text and "this run is one of its" in text
    tuning = next(
        record for record in store.read(study.spec.name) if record.label == arm and "test" not in record.scores
    )
    assert "none of those it is made of" in _row(SavedRun(store, tuning, store.root, {}))


def test_base_and_data_stand_with_their_commits(demo, tmp_path):
    record = demo.store.read(demo.name)[0]
    record.task |= {"hub": "org/data", "commit": "d" * 40}
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    loaded = Loaded(model, None, "causal", "hf", "x", origin={"hub": "org/base", "commit": "b" * 40})
    text = str(model_card(SavedRun(demo.store, record, tmp_path, {}), loaded, Written([], 8, 0.0), "me/it"))
    head = yaml.safe_load(text.split("---")[1])
    assert (head["base_model"], head["base_model_relation"], head["datasets"]) == ("org/base", "adapter", ["org/data"])
    (result,) = head["model-index"][0]["results"][:1]
    assert result["dataset"]["revision"] == "d" * 40 and result["dataset"]["type"] == "org/data"
    assert f"from_pretrained('org/base', revision='{'b' * 40}')" in text and f"org/data at {'d' * 40}" in text


@pytest.mark.parametrize(
    "word, shown",
    [
        ("rank=4", "rank=4"),
        ("task.path=/home/me/mine.jsonl", "task.path=mine.jsonl"),
        ("model.path=~/models/mine", "model.path=mine"),
        ("task.path=mine.jsonl", "task.path=mine.jsonl"),
        ("model.path=org/base", "model.path=org/base"),
        ("/home/me/saved/ab12", "ab12"),
        ("results_dir=/home/me/r", ""),
        ("save=x", ""),
    ],
)
def test_a_command_keeps_what_concerns_the_machine_to_itself(word, shown):
    assert _public(word) == shown
