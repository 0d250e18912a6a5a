"""Scale stability told from a grid whose exponents are known."""

from __future__ import annotations

import json

from lorax.reports.figures.scale import draw_scale
from lorax.reports.scale import CLAIMS, readme, write_scale

LABELS = ("lora", "rslora", "lora_ga", "lora_ga backward", "pissa", "milora", "lora_xs", "svft")
RANKS, WIDTHS, CENTRE = [4, 8, 16], [64, 128], 64
SHAPES = [(64, 64), (128, 64), (64, 128)]


def measured(**exponents):
    """A run in which every moment is a power law; by default what the claims say."""
    claimed = {(label, moment): value for _, _, label, moment, value in CLAIMS} | exponents.pop("other", {})
    grids = {}
    for tokens in ("1", "256"):
        grids[tokens] = {}
        for label in LABELS:
            fits, rows = {}, [{"r": r, "m": m, "n": n} for r in RANKS for m, n in SHAPES]
            for moment in ("forward_init", "backward_init", "forward_step", "backward_step"):
                zero = moment.endswith("init") and label in ("lora", "rslora", "lora_xs", "svft")
                fit = {"r": 0.0, "m": 0.0, "n": 0.0} | claimed.get((label, moment), {})
                fits[moment] = None if zero else fit
                for row in rows:
                    row[moment] = 0.0 if zero else row["r"] ** fit["r"] * row["m"] ** fit["m"] * row["n"] ** fit["n"]
            misfit = {moment: fit and 1.0 for moment, fit in fits.items()}
            grids[tokens][label] = {"rows": rows, "exponents": fits, "misfit": misfit}
    about = {"quick": False, "ranks": RANKS, "widths": WIDTHS, "centre": CENTRE, "draws": 1, "cpu_seconds": 1.0}
    return {"about": about, "grids": grids}


def agreements(text):
    lines = text.split("| claim")[1].split("\n\n")[0].splitlines()[2:]
    return [line.split("|")[-2].strip() for line in lines]


def test_claims_are_judged_by_what_was_measured():
    assert set(agreements(readme(measured()))) == {"yes"}
    off = measured(other={("rslora", "backward_step"): {"r": -0.5}})
    assert agreements(readme(off)).count("no") == 2, "from 1 token and from 256"
    assert "0 throughout" in readme(off)


def test_figures_have_a_curve_wherever_a_moment_is_above_zero(tmp_path):
    drawn = draw_scale(measured())
    assert set(drawn) == {"start", "step_1", "step_256"}
    assert [len(axes.lines) for axes in drawn["start"].axes] == [4] * 6
    assert [len(axes.lines) for axes in drawn["step_1"].axes] == [8] * 6
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in drawn["start"].axes)
    names = {path.name for path in write_scale(measured(), tmp_path)}
    assert {"grid.json", "README.md", "start.png", "start.svg", "step_256.svg"} <= names
    assert readme(json.loads((tmp_path / "grid.json").read_text())) == (tmp_path / "README.md").read_text()
