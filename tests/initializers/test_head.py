"""Linear probing: the head alone trains, at the run's own rate."""

import torch

from lorax.records import Store


def probe(lorax, *words, results="results"):
    assert lorax("init=head", "task=toy_classification", "base=false", *words, results=results) == 0
    (record,) = Store(results).read("small")
    return record


def test_only_the_head_trains_and_lr_is_its_rate(lorax, tmp_path):
    record = probe(lorax, "steps=30", "lr=0.05", "train.head_lr=1e-9", f"save={tmp_path / 'kept'}")
    assert record.costs["trainable"] == record.costs["head"] > 0
    assert record.init_report["step0_error"] == 0 and len(record.curve) == 30
    assert record.curve[0]["loss"] > record.curve[-1]["loss"]
    same = probe(lorax, "steps=30", "lr=0.05", "train.head_lr=1", results="again")
    assert same.run_id == record.run_id and same.curve == record.curve  # the adapters' head rate is not consumed
    other = probe(lorax, "steps=30", "lr=0.01", results="other")
    assert other.run_id != record.run_id

    from safetensors.torch import load_file

    (file,) = (tmp_path / "kept").rglob("*.safetensors")
    saved = load_file(file)
    assert sum(value.numel() for value in saved.values()) == record.costs["head"]
    assert all(name.startswith("score.") and bool(torch.isfinite(value).all()) for name, value in saved.items())


def test_a_model_without_a_fresh_head_is_refused(lorax, capsys):
    assert lorax("init=head") == 2
    assert "init=head: model=toy has no fresh head on task=toy" in capsys.readouterr().err
