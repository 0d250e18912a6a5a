"""Diagnostics of a sweep: what its table and figures say, rebuilt from records alone."""

from __future__ import annotations

import pandas as pd
import pytest

from lorax.records import RunRecord, Store, run_id
from lorax.reports.diagnostics import part, write_diagnostics
from lorax.reports.figures.diagnostics import diagnostics, layers
from lorax.reports.frames.diagnostics import diagnostics_frame, layer_frame, measured_runs, wide
from lorax.reports.sweep import write_sweep

LAYERS = [f"h.{block}.{kind}" for block in range(3) for kind in ("q", "up")]


def record(init, seed=0, measured=True, rank=8):
    own = {"name": init} if init in ("full", "none") else {"name": init, "rank": rank}
    identity = {"init": own, "task": {"name": "t", "digest": "d"}, "seed": seed, "lr": 1e-3}
    top = {"full": 1.0, "lora": 0.1}.get(init, 0.5)
    values = {
        "cosine_first": [top + 0.001 * k for k in range(6)], "optimum_2r": [0.8] * 6, "captured_2r": [0.64] * 6,
        "cosine_final": [None if init == "full" else top / 3] * 6, "relative_norm": [top / 10**k for k in range(6)],
        "overlap_top": [0.02] * 6, "overlap_chance": [0.02] * 6,
    }  # fmt: skip
    heads = {key: column[2] for key, column in values.items()}
    heads["cosine_first"] += seed / 100
    headlines = heads | {"forgetting": None, "layers": {"names": LAYERS, **values}, "about": {"rank": 8}}
    headlines |= {"full_update_of": None if init == "full" else {"run_id": "f", "seed": "0", "lr": "0.0002"}}
    return RunRecord(
        run_id="f" if init == "full" else run_id(identity), name="sweep", status="finished",
        config=identity, identity=identity,
        task={"name": "t", "metric": "accuracy"}, scores={"test": {"score": top, "n": 10}},
        costs={"trainable": 0 if init == "none" else 9}, diagnostics=headlines if measured else {},
        provenance={"finished": "2026"},
    )  # fmt: skip


RECORDS = [record("pissa"), record("lora", 0), record("lora", 1), record("full"), record("none", measured=False)]


def test_the_table_has_a_row_a_method_and_means_over_seeds():
    arms = measured_runs(RECORDS)
    assert list(arms) == ["full", "lora", "pissa"] and len(arms["lora"]) == 2
    frame = diagnostics_frame(arms)
    shown = part(frame, arms)
    (table,) = shown.tables
    rows = {line[0]: dict(zip(table.head, line, strict=True)) for line in table.body}
    assert rows["lora"]["first SGD step"] == "0.107", "the mean of 0.102 and 0.112"
    assert [head for head, cell in rows["full"].items() if cell == "-"] == ["final to full's"]
    assert "forgetting" not in table.head, "nobody measured it"
    assert any("run f (seed 0, lr 0.0002)" in line for line in shown.lines)
    assert wide(frame)["arm"].tolist() == ["full", "lora", "lora", "pissa"]


def test_a_seed_scored_on_two_splits_counts_once():
    again = record("lora", 1)
    again.run_id, again.identity = "again", again.identity | {"evaluate": "validation"}
    assert [len(runs) for runs in measured_runs([*RECORDS, again]).values()] == [1, 2, 1]


def test_arms_that_had_no_full_update_at_hand_are_named():
    arms = measured_runs(RECORDS)
    assert not any("LORAX_CACHE" in line for line in part(diagnostics_frame(arms), arms).lines)
    late = record("svft")
    late.diagnostics |= {"full_update_of": None, "cosine_final": None}
    arms = measured_runs([*RECORDS, late])
    (line,) = [line for line in part(diagnostics_frame(arms), arms).lines if "LORAX_CACHE" in line]
    assert line.startswith("svft: full fine-tuning's update was not in the cache")


def test_ranks_make_rows_where_there_are_several():
    assert list(measured_runs([record("lora"), record("lora", rank=16)])) == ["lora r=8", "lora r=16"]


def test_layers_are_all_drawn_and_energy_that_all_share_is_a_line():
    arms = measured_runs(RECORDS)
    frame = layer_frame(arms)
    assert len(frame[(frame["arm"] == "lora") & (frame["quantity"] == "cosine_first")]) == 12
    assert set(frame["layer"]) == set(LAYERS)
    for figure, scale in ((layers(frame), "log"), (diagnostics(diagnostics_frame(arms)), "linear")):
        shown = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
        assert not any("energy" in title for title in shown)
        first = shown["cosine of first SGD step to -gradient"]
        assert first.get_title(loc="right") == "dashed: 2r" and first.get_xlim()[1] > 1
        assert shown["||dW|| / ||W0||"].get_xscale() == scale


def test_a_sweep_s_page_is_rebuilt_with_its_diagnostics(tmp_path):
    store = Store(tmp_path)
    for one in RECORDS:
        store.write(one)
    text, paths = write_sweep(store, "sweep")
    assert "## Diagnostics" in text and (tmp_path / "tables" / "sweep.md").read_text() == text
    assert {path.name for path in paths} == {"sweep.md", "sweep.csv", "sweep_diagnostics.csv", "diagnostics.png",
        "diagnostics.svg", "diagnostics_layers.png", "diagnostics_layers.svg"}  # fmt: skip
    table = pd.read_csv(tmp_path / "tables" / "sweep_diagnostics.csv")
    assert table.loc[table["arm"] == "pissa", "cosine_final"].item() == pytest.approx(0.5 / 3)
    before = {path.name: path.read_bytes() for path in paths}
    assert {path.name: path.read_bytes() for path in write_sweep(store, "sweep")[1]} == before


def test_nothing_measured_is_no_part(tmp_path):
    assert write_diagnostics(Store(tmp_path), "sweep", [record("lora", measured=False)]) == (None, [])
