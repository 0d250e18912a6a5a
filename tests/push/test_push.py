"""A run that is pushed: stock PEFT gives its scores back, and the card says what it is."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file

from lorax.models.registry import load
from lorax.push.__main__ import main
from lorax.records import Store

IDS = torch.arange(24).view(2, 12)


def pushed(hub, *words):
    assert main([*words]) == 0
    return hub.repositories["me/it"]["files"]


def test_a_run_goes_to_the_hub_and_its_card_says_what_it_is(lorax, hub, capsys, tmp_path):
    assert lorax("init=lora_ga", "rank=4", "save=saved", "base=false", "seed=3", "task.n_validation=16") == 0
    (record,) = Store("results").read("small")
    capsys.readouterr()
    files = pushed(hub, record.run_id[:6], "me/it", "folder=out", "private=true")
    said = capsys.readouterr().out
    assert f"{hub.address}/me/it" in said and f"run {record.run_id}, rank 8" in said  # recentred: twice the rank
    assert files == {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(files)

    ours = load({"name": "toy"}).model
    import lorax as package

    package.load(ours, f"saved/{record.run_id}")
    stock = PeftModel.from_pretrained(load({"name": "toy"}).model, "out")
    torch.testing.assert_close(stock(IDS).logits, ours(IDS).logits, rtol=1e-4, atol=1e-5)

    card = ModelCard.load("out/README.md")
    result = card.data.eval_results[0]
    assert card.data.library_name == "peft" and "lora_ga" in card.data.tags and card.data.base_model is None
    assert result.metric_value == pytest.approx(record.score("test")) and result.dataset_name == "toy"
    for words in (record.run_id, "https://arxiv.org/abs/2407.05000", record.task["digest"], record.model["digest"],
                  record.provenance["versions"]["torch"]):  # fmt: skip
        assert words in card.text, words
    command = re.search(r"python -m lorax.run (.*)", card.text)[1]
    assert "init=lora_ga" in command and "save=" not in command and "results_dir=" not in command


@pytest.mark.slow
def test_a_folder_is_pushed_as_its_run_is_and_cut_to_a_rank(lorax, hub):
    assert lorax("init=lora_ga", "rank=4", "save=saved", "base=false") == 0
    (record,) = Store("results").read("small")
    again = pushed(hub, f"saved/{record.run_id}", "me/it", "rank=2")
    Path("low.safetensors").write_bytes(again["adapter_model.safetensors"])
    assert {tensor.shape[0] for key, tensor in load_file("low.safetensors").items() if "lora_A" in key} == {2}
    assert "relative error" in again["README.md"].decode()


@pytest.mark.slow
@pytest.mark.parametrize("words, line", [
    (["init=full"], "init=full has no form in PEFT"),
    (["init=houlsby"], "init=houlsby in PEFT's format: cannot export"),
])  # fmt: skip
def test_what_has_no_form_in_peft_says_so(lorax, capsys, words, line):
    assert lorax(*words, "save=saved", "base=false") == 0
    (record,) = Store("results").read("small")
    capsys.readouterr()
    assert main([record.run_id, "me/it", "--dry-run", "folder=out"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and line in said[0] and not Path("out").exists(), said


@pytest.mark.slow
def test_a_classifier_brings_its_head_and_names_its_classes(lorax, capsys):
    assert lorax("task=toy_classification", "save=saved", "base=false") == 0
    (record,) = Store("results").read("small")
    assert main([record.run_id, "me/it", "--dry-run", "folder=out"]) == 0
    assert any("score" in key for key in load_file("out/adapter_model.safetensors"))
    card = ModelCard.load("out/README.md")
    assert card.data.pipeline_tag == "text-classification" and "Classes: 0 " in card.text
