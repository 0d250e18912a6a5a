"""Looking after every seed: that what is measured is what written studies say, and what was measured of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from lorax.calibration import item_effects, method_tables, method_worlds
from lorax.calibration.moderated import compared, moderated, prior
from lorax.calibration.until_decided import looked, measure
from lorax.calibration.worlds import World, draws
from lorax.calibration.written import same_looks
from lorax.stats.effects import paired_t


def test_what_is_measured_on_arrays_is_what_written_records_say():
    """Run by run through the rounds of a study with `seeds: until_decided`, its store and `read_study`."""
    world = World("written looks", arms=2, seeds=6, spread=(0.004,), effects=(0.2,))
    assert same_looks(world, 1) == {"verdicts": 2, "equal": 2}
    (batch,) = draws(world, 1)
    assert [course.sign for course in looked(batch, 0).courses.values()] == [1, 0]


def test_equal_methods_are_never_found_and_different_ones_are():
    row = measure(World("looks", effects=(0.05, -0.05), arms=4, seeds=14, spread=(0.008,)), 25)
    assert row.false == row.false_lattice == 0 and row.found > 0.9 and 5 <= row.median <= 12
    assert row.inside >= 0.9 and row.runs < 14 * 4
    assert measure(World("too short", arms=2, seeds=4, effects=(0.01,)), 5).median is None
    plain = row.plain()
    assert plain["error"] == pytest.approx((1 / 25 * 24 / 25 / 25) ** 0.5), "none of 25 is not known to be none"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unequal, on the lattice", "bimodal reference, quiet arms", "every rate alike"])
def test_looking_from_3_to_30_seeds_keeps_its_level(name):
    ((world, estimand),) = [pair for pair in method_worlds.until_decided() if pair[0].name == f"until decided, {name}"]
    assert measure(world, 150, 1, estimand).false <= 0.065


def test_items_that_favour_an_arm_are_part_of_this_test_set_and_noise_for_new_items():
    of_t, crossed = item_effects.measure(World("items", arms=5, seeds=8), 75, favour=0.012)
    assert of_t["false_here"] <= 0.05 < 0.15 < of_t["false"] and of_t["coverage_here"] > 0.93 > of_t["coverage"]
    assert crossed["false"] <= 0.065 and crossed["coverage"] > 0.93


def test_the_prior_of_variances_is_the_one_they_were_drawn_from():
    g = np.random.default_rng(0)
    true = 4.0 * 10 / g.chisquare(10, 4000)
    found, df = prior(true * g.chisquare(4, 4000) / 4, 4)
    assert found == pytest.approx(4.0, rel=0.05) and df == pytest.approx(10, rel=0.25)
    alike, many = prior(np.full((1, 5), 2.0), 4)
    assert np.isinf(many) and alike == pytest.approx(2.0 / np.exp(special.digamma(2) - np.log(2)))


def test_moderated_effects_shrink_towards_each_other():
    d = np.random.default_rng(1).normal(0, 1, (3, 6, 4)) * np.array([1, 1, 1, 1, 1, 4])[:, None]
    plain, shrunk = paired_t(d), moderated(d)
    assert np.array_equal(plain.estimate, shrunk.estimate) and np.all(shrunk.df >= plain.df)
    assert np.all(np.ptp(np.log(shrunk.se), axis=-1) < np.ptp(np.log(plain.se), axis=-1))


def test_the_moderated_t_finds_more_and_breaks_its_level_where_one_arm_is_noisy():
    worlds = {n: w for n, w in method_worlds.spreads().items() if n.endswith("3 seeds")}
    rows = compared(worlds, 600)
    false = {(row["world"], row["t"]): row["false"] for row in rows}
    assert false["one arm in four four times as noisy, 3 seeds", "moderated"] > 0.08
    assert max(share for (_, kind), share in false.items() if kind == "plain") < 0.06
    text = "\n".join(method_tables.moderated(rows))
    assert "**It is not shipped**" in text and "| spreads alike, 3 seeds |" in text


def test_the_page_has_a_row_for_each_world_with_its_error():
    row = measure(World("until decided, a world", arms=2, seeds=5), 2).plain()
    text = "\n".join(method_tables.until_decided([row, row | {"found": 0.2}], {"verdicts": 6, "equal": 6}))
    assert "| a world | method | 0.0 % +- 35.4 |" in text and "equal in 6 of 6" in text
    assert "| - | - |" in text and "| more than 30 |" in text
