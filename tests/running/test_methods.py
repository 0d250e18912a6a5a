"""The table of methods is what the code says today."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lorax.initializers.registry import build, get, names
from lorax.probing.calibration import GivenMatrices
from lorax.probing.probe import Probe
from lorax.running import methods

COMMITTED = Path(__file__).parents[2] / "results/tables/methods.md"
BOTTLENECKS = ("houlsby", "parallel_adapter", "pfeiffer")
GATED = ("hydra_lora", "molora")
LINEAR = [
    name for name in names() if get(name).has_factors and get(name).adapts == "linear" and not get(name).takes_saved
]


def rows():
    lines = [line for line in COMMITTED.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def test_the_committed_table_is_the_generated_one(tmp_path, capsys):
    assert methods.main([f"results_dir={tmp_path}"]) == 0
    assert (tmp_path / "tables/methods.md").read_text() == COMMITTED.read_text()
    assert "wrote" in capsys.readouterr().out and set(rows()) == set(names())


def test_what_it_says_of_some_methods_is_known_otherwise():
    table = rows()
    assert {name for name, row in table.items() if row["step 0"] != "base"} == {"from", "fusion", "lora_one", "lora_sb"}
    assert {name for name, row in table.items() if row["PEFT"] == "no"} == {*BOTTLENECKS, *GATED}
    assert {name for name, row in table.items() if row["merges"] == "no"} == {*BOTTLENECKS, *GATED}
    assert table["dora"]["PEFT"] == "DoRA r"
    site = 2 * 576 * 8 + 576 + 8  # A, a, B, b
    values = {name: int(table[name]["values"].replace(",", "")) for name in ("lora", "lora_xs", "svft", "vera", "dora")}
    sites = {name: int(table[name]["values"].replace(",", "")) for name in BOTTLENECKS}
    assert sites == {"houlsby": 60 * site, "pfeiffer": 30 * site, "parallel_adapter": 30 * site}
    outputs = sum(m for m, _ in methods.SMOLLM2)
    assert values == {
        "lora": 8 * sum(m + n for m, n in methods.SMOLLM2), "lora_xs": 64 * 210, "svft": 30 * (5 * 576 + 2 * 192),
        "vera": outputs + 8 * 210, "dora": 8 * sum(m + n for m, n in methods.SMOLLM2) + outputs,
    }  # fmt: skip
    assert table["dora"]["in a pack"] == "plain" and table["svf"]["in a pack"] == "fused"


@pytest.mark.parametrize("name", LINEAR)
def test_a_method_looks_at_no_more_than_it_says(name):
    """The probe gives what `needs` names and nothing else; the table's column is read from there."""
    method, asked = build(name, shared={"rank": 3}), set()
    layer = nn.Linear(10, 8, bias=False)
    torch.manual_seed(0)
    calibration = GivenMatrices({"x": torch.randn(8, 10)}, {"x": torch.eye(10)})

    class Watched(Probe):
        @property
        def weight(self):
            asked.add("weight")
            return Probe.weight.func(self)

        @property
        def gradient(self):
            asked.add("gradient")
            return calibration.gradients["x"]

        def activations(self):
            asked.add("activations")
            return calibration.moments["x"]

    method(Watched("x", layer, calibration=calibration))
    assert asked == {"weight" if need == "svd" else need for need in method.needs}


@pytest.mark.parametrize("words", [["methods"], ["results_dir="], ["results=x"]])
def test_other_words_are_one_line(words, capsys):
    assert methods.main(words) == 2
    assert "results_dir=<folder> is the only option" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shapes_are_smollm2s():
    from lorax.adapters.install import find_targets
    from lorax.adapters.kinds import shape_of
    from lorax.models.registry import skeleton

    model = skeleton({"name": "smollm2"}).model
    assert sorted(map(shape_of, find_targets(model).values())) == sorted(methods.SMOLLM2)
    assert sum(p.numel() for p in model.parameters()) == methods.SMOLLM2_TOTAL
