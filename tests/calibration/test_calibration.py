"""The calibration: what it simulates, that it measures the verdicts of the tables, and what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lorax.calibration import method_worlds, scenarios
from lorax.calibration.__main__ import main
from lorax.calibration.measure import CANDIDATES, differences, measure
from lorax.calibration.simulate import Scenario, Simulator
from lorax.calibration.swaps import swap
from lorax.stats.judge import judge
from lorax.stats.result import Final

COMMITTED = Path(__file__).parents[2] / "results" / "calibration"


def test_simulated_scores_have_the_wanted_truth_and_spread():
    scenario = Scenario("truth", rate=0.3, seed_sd=0.03, items=300, effects=(0.1, -0.05), shared=0.0)
    d = np.concatenate([differences(draw).mean(axis=-1) for draw in Simulator(scenario).draws(400)])
    assert d.mean(axis=(0, 2)) == pytest.approx([0.1, -0.05], abs=0.003)
    assert Simulator(scenario).truth[:, 0] == pytest.approx([0.3, 0.4, 0.25], abs=1e-6)
    assert 0.03 * 2**0.5 < d[:, 0].std() < 0.065


def test_selection_moves_the_truth_it_is_judged_by():
    draws = list(Simulator(Scenario("curve", curve=0.3, items=100, effects=(0.0,) * 3)).draws(50))
    truth = np.concatenate([draw.truth for draw in draws])
    assert len(np.unique(np.round(truth[:, 0], 6))) > 1


def test_what_is_calibrated_is_what_the_tables_say():
    """One simulated table, through `judge` as through the vectorised path."""
    scenario = Scenario("same", effects=(0.2, 0.0), items=200)
    draw = next(Simulator(scenario).draws(1))
    scores = draw.solved[0].mean(axis=-1)
    finals = [Final(f"arm{a}", "t", s, scores[a, s], 200) for a in range(3) for s in range(scenario.seeds)]
    result = judge(finals, reference="arm0", margin=0.01)
    measured = measure(scenario, 1)[0]
    assert measured.verdicts["better"] == np.mean([c.verdict == "better" for c in result.comparisons]) == 0.5


def test_the_chosen_procedure_keeps_its_bounds_where_others_do_not():
    scenario = Scenario("loud", seed_sd=0.04, seeds=3, items=300, effects=(0.0,) * 4)
    names = ("paired_t", "pooled McNemar", "item-clustered z")
    paired_t, mcnemar, items_only = measure(scenario, 600, candidates=names)
    assert paired_t.false_tables < 0.08 and 0.93 < paired_t.coverage < 0.97
    assert mcnemar.false_tables > 0.3 and items_only.coverage < 0.9


def test_swapped_labels_rarely_differ():
    g = np.random.default_rng(0)
    finals = [Final(f"arm{a}", "t", s, 0.5 + 0.1 * a + g.normal(0, 0.01), 500) for a in range(4) for s in range(6)] + [
        Final("none", "t", None, 0.1, 500)
    ]
    swapped = swap("s", finals, 0.01, tables=1000)
    assert swapped.arms == 4 and swapped.false_tables <= swapped.usual < 0.15


def test_the_command_writes_figures_and_says_whether_bounds_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(scenarios, "quick", lambda: [Scenario("promise, small", seed_sd=0.02, items=100)])
    monkeypatch.setattr(scenarios, "stressed", list)
    monkeypatch.setattr(method_worlds, "quick", list)
    monkeypatch.setattr(scenarios, "compared", scenarios.quick)
    assert main(["--quick", "--results", str(tmp_path)]) == 0
    text = (tmp_path / "calibration" / "quick.md").read_text()
    assert (
        "Every bound is kept" in text and "| NO |" not in text and (tmp_path / "calibration" / "quick.json").is_file()
    )
    (tmp_path / "calibration" / "quick.json").rename(tmp_path / "calibration" / "full.json")
    assert main(["--swaps", "--results", str(tmp_path)]) == 0  # the rest stays as it was
    assert "No completed study has records here yet" in (tmp_path / "calibration" / "README.md").read_text()
    monkeypatch.setattr("lorax.calibration.measure.CANDIDATES", {"paired_t": CANDIDATES["pooled McNemar"]})
    wrong = measure(Scenario("loud", seed_sd=0.05, seeds=3, items=300), 100)[0]
    assert wrong.false_tables > 0.3


@pytest.mark.parametrize("word", ["--swaps", "--redraw"])
def test_what_adds_to_a_calibration_needs_one(tmp_path, capsys, word):
    with pytest.raises(SystemExit, match="2"):
        main([word, "--results", str(tmp_path)])
    assert "no full calibration yet" in capsys.readouterr().err


def test_the_committed_page_is_what_its_figures_give(tmp_path):
    shutil.copytree(COMMITTED, tmp_path / "calibration")
    (tmp_path / "calibration" / "README.md").write_text("edited by hand")
    assert main(["--redraw", "--results", str(tmp_path)]) == 0
    for name in ("README.md", "full.json"):
        assert (tmp_path / "calibration" / name).read_bytes() == (COMMITTED / name).read_bytes()
    assert "Written by `python -m lorax.calibration`;" in (COMMITTED / "README.md").read_text()


@pytest.mark.slow
def test_quick_calibration_keeps_every_bound(tmp_path):
    assert main(["--quick", "--results", str(tmp_path)]) == 0


def test_calibration_is_reproducible():
    again = [measure(Scenario("same seed", items=50), 20)[0] for _ in range(2)]
    assert again[0] == again[1]
