"""A run whose layers have ranks of their own, with a module trained whole."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def test_a_run_takes_what_peft_users_set(lorax):
    words = (
        "init=lora", "rank=4", "targets=[q_proj,v_proj]", "rank_pattern={q_proj:2}", "alpha_pattern={v_proj:8}",
        "layers_to_transform=0", "exclude_modules=[k_proj]", "modules_to_save=[model.norm]", "save=saved", "base=false",
        "steps=2",
    )  # fmt: skip
    assert lorax(*words) == 0
    [path] = Path("results/records/small").glob("*.json")
    record = json.loads(path.read_text())
    assert record["identity"]["rank_pattern"] == ["q_proj:2"] and record["identity"]["layers_to_transform"] == [0]
    assert record["init_report"]["eta"] == [2.0, 8.0] and record["init_report"]["n_layers"] == 2
    [folder] = Path("saved").iterdir()
    tensors = load_file(folder / "adapter.safetensors")
    assert sorted(value.shape[0] for key, value in tensors.items() if key.endswith(".A")) == [2, 4]
    assert record["costs"]["trainable"] == sum(value.numel() for value in tensors.values())
    assert not torch.equal(tensors["model.norm.weight"], torch.ones_like(tensors["model.norm.weight"]))


def test_a_pattern_that_matches_nothing_stops_before_the_run(lorax, capsys):
    assert lorax("init=lora", "rank_pattern={q_prj:2}") == 2
    said = capsys.readouterr().err.strip()
    assert "rank_pattern: 'q_prj' matches no adapted layer; did you mean 'q_proj'" in said and "\n" not in said
    assert (
        lorax("init=lora", "modules_to_save=[nrm]") == 2 and "matches no module with weights" in capsys.readouterr().err
    )
    assert lorax("init=lora", "rank_pattern=[q_proj]") == 2 and not Path("results").exists()
