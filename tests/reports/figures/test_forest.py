"""The forest plot: what is drawn is what the table says, no text covers another, far intervals end in an arrow."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lorax.reports.figures.forest import forest, reach

LINES = [
    ("base", -0.85, -0.88, -0.82, "worse", "worse by at least 82.0"),
    ("pissa", 0.02, 0.012, 0.028, "better", "better by at least 1.2"),
    ("rslora", -0.002, -0.009, 0.005, "equivalent", "equivalent within 1.5"),
    ("edge", -0.01, -np.inf, 0.03, "undecided", "undecided"),
    ("lora_xs", -0.01, -0.03, 0.01, "undecided", "undecided"),
]


def frame(lines=LINES, task="words"):
    keys = ["arm", "difference", "difference_low", "difference_high", "verdict", "verdict_words"]
    return pd.DataFrame(lines, columns=keys).assign(task=task)


def test_every_row_has_its_interval_its_numbers_and_its_words():
    figure = forest(pd.concat([frame(), frame(task="sums")]), 0.015, "lora")
    figure.draw_without_rendering()
    assert len(figure.axes) == 2
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [line[0] for line in LINES]
    texts = [text.get_text() for text in panel.texts]
    assert texts == [part for line in LINES for part in (_numbers(line), line[-1])]
    segments = [line.get_xdata() for line in panel.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == 1]
    assert any(np.allclose(ends, (0.012, 0.028)) for ends in segments)
    assert figure._supxlabel.get_text() == "at the selected rates; corrected intervals; band: the margin of 1.5 points"
    left = [line.get_ydata()[0] for line in panel.lines if line.get_marker() == "<"]
    assert left == [0, 3], "a far row and an open end: an arrow each"
    boxes = [text.get_window_extent() for text in panel.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    right = figure.get_window_extent().x1
    assert max(box.x1 for box in boxes) <= right + 1


def _numbers(line):
    points = [f"{100 * value:+.1f}" if np.isfinite(value) else "-∞" for value in line[1:4]]
    return f"{points[0]} [{points[1]}, {points[2]}]"


def test_the_band_is_two_sided_for_equivalence_and_open_upwards_for_non_inferiority():
    spans = {}
    for claim in ("difference", "non_inferior"):
        (panel,) = forest(frame(), 0.015, "lora", claim).axes
        extent = panel.patches[0].get_extents().transformed(panel.transData.inverted())
        spans[claim] = extent.x0, extent.x1
    assert spans["difference"] == pytest.approx((-0.015, 0.015))
    assert spans["non_inferior"] == pytest.approx((-0.015, reach([-0.88, 0.012, -0.009, -np.inf, -0.03],
                                                                [-0.82, 0.028, 0.005, 0.03, 0.01], 0.015)))  # fmt: skip


def test_nothing_to_compare_is_no_figure():
    assert forest(frame().assign(verdict=""), 0.01, "lora") is None
    assert reach([-np.inf], [np.inf], 0.02) == 0.04
