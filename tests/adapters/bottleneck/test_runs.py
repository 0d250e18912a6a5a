"""Bottleneck methods on the command line: refused before a run starts, packed as single, fused from saved runs."""

import json
from pathlib import Path

import pytest

from lorax.records import Store


def records(results="results"):
    return {record.run_id: record for record in Store(results).read("small")}


def test_packed_runs_are_single_runs_and_are_fused(lorax, capsys):
    words = ["-m", "rank=4", "steps=3", "base=false"]
    assert lorax(*words, "init=pfeiffer", results="single") == 0
    grid = ["init=houlsby,pfeiffer,parallel_adapter", "hydra/launcher=packed", "save=saved"]
    assert lorax(*words, *grid, results="packed") == 0
    single, packed = records("single"), records("packed")
    [(key, record)] = single.items()
    losses = [row["loss"] for row in record.curve]
    assert [row["loss"] for row in packed[key].curve] == pytest.approx(losses, rel=1e-5) and len(packed) == 3
    for record in packed.values():
        sites = {"houlsby": 4, "pfeiffer": 2, "parallel_adapter": 2}[record.config["init"]["name"]]
        assert record.init_report["step0_error"] == 0 and record.costs["trainable"] == sites * (8 * 64 + 4 + 64)
    by_name = {record.config["init"]["name"]: key for key, record in packed.items()}
    folder = f"saved/{by_name['pfeiffer']}"
    capsys.readouterr()
    words = ["init=fusion", f"init.adapters=[{folder},{folder}]", "base=false"]
    assert lorax(*words, results="fused") == 0
    [fused] = records("fused").values()
    assert fused.costs["trainable"] == 2 * (3 * 64 * 64 + 2 * 64) and fused.init_report["step0_error"] > 0
    assert fused.curve[0]["penalty"] == pytest.approx(0.01 * 2 * 64 * 63 * 1e-12, rel=1e-3)
    header = json.loads((Path(folder) / "adapter.json").read_text())
    assert (
        fused.identity["init"]["identities"] == [header["digest"][:16]] * 2 and "adapters" not in fused.identity["init"]
    )
    assert lorax(*words, results="fused") == 0 and "skipped" in capsys.readouterr().out


def test_what_cannot_run_is_one_line_before_a_run_starts(lorax, capsys):
    for words, line in (
        (["init=fusion"], "init=fusion needs trained adapters: init.adapters=[folder,folder]"),
        (["init=fusion", "init.adapters=[nothing]"], "adapters: nothing holds no adapter.json"),
        (["init=houlsby", "rank=65"], "rank=65 exceeds 64, which the site reads or writes"),
        (["init=pfeiffer", "targets=[embed_tokens]"], "model.embed_tokens (Embedding): a linear layer, a norm or"),
        (["init=pfeiffer", "init.nonlinearity=swish"], "nonlinearity=swish is unknown"),
    ):
        assert lorax(*words) == 2
        said = capsys.readouterr().err.strip()
        assert line in said and "\n" not in said
    assert not Path("results/records/small").exists()
