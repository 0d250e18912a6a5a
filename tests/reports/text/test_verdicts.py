"""The words of a verdict: the bound as the interval prints it, the margin as it was set, and their colour."""

from __future__ import annotations

import pytest

from lorax.reports.text.verdicts import kind, words
from lorax.stats.result import Comparison


def comparison(verdict, low, high):
    nothing = dict.fromkeys(("se", "df", "sd", "p", "p_adjusted", "p_equivalence", "p_equivalence_adjusted"), 0.1)
    return Comparison("t", "a", "lora", verdict, (low + high) / 2, low, high, 0.95, **nothing, seeds=(), n_items=9,
                      item_noise=None)  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "low", "high", "margin", "text", "colour"),
    [
        ("worse", -0.031, -0.012, 0.02, "worse by at least 1.2", "worse"),
        ("better", 0.0123, 0.05, 0.02, "better by at least 1.2", "better"),
        ("better", 0.0123, float("inf"), 0.02, "better by at least 1.2", "better"),
        ("better", 0.000379, 0.05, 0.02, "better by at least 0.03", "better"),
        ("worse", -0.05, -0.0000021, 0.02, "worse by at least 0.0002", "worse"),
        ("equivalent", -0.01, 0.004, 0.02, "equivalent within 2.0", "equivalent"),
        ("equivalent", -0.001, 0.004, 0.0125, "equivalent within 1.25", "equivalent"),
        ("non_inferior", -0.01, 0.04, 0.005, "not worse by 0.5 (non-inferior)", "equivalent"),
        ("undecided", -0.01, 0.04, 0.005, "undecided", "undecided"),
    ],
)
def test_words_carry_the_bound_or_the_margin(verdict, low, high, margin, text, colour):
    assert words(comparison(verdict, low, high), margin) == text
    assert kind(text) == colour


def test_other_cells_have_no_colour():
    assert [kind(cell) for cell in ("lora", "-", "reference", "54.3 [52.1, 56.5]", "better")] == [""] * 5
