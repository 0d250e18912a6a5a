"""What the calibration simulates: seed sd 0.5 to 5 points, 3 to 10 seeds, scores from floor to ceiling.

The name of a scenario seeds its random numbers: another name gives other figures.
"""

from __future__ import annotations

from dataclasses import replace

from lorax.calibration.simulate import Scenario


def full() -> list[Scenario]:
    """Scenarios of the full calibration."""
    out = [
        Scenario(f"no difference, seed sd {100 * sd:g} pp, {seeds} seeds", seed_sd=sd, seeds=seeds)
        for sd in (0.005, 0.01, 0.025, 0.05)
        for seeds in (3, 5, 10)
    ]
    out += [
        Scenario(f"rate {100 * rate:g} %, {seeds} seeds", rate=rate, seed_sd=0.008, seeds=seeds)
        for rate in (0.02, 0.98)
        for seeds in (3, 6)
    ]
    out += [Scenario(f"rate 0.3, {n} items", rate=0.3, items=n) for n in (200, 1319)]
    return out + _decided() + _selected() + [_promised(sd, n) for sd in (0.005, 0.025) for n in (3, 6, 10)]


def quick() -> list[Scenario]:
    """A few scenarios that cover every kind, within a minute on one core."""
    return [
        Scenario("no difference, seed sd 2.5 pp, 3 seeds", seed_sd=0.025, seeds=3, items=500),
        Scenario("rate 98 %, 6 seeds", rate=0.98, seed_sd=0.008, items=500),
        Scenario("rate 2 %, 3 seeds", rate=0.02, seed_sd=0.008, seeds=3, items=500),
        _decided()[0],
        _selected()[0],
        _promised(0.025, 6),
    ]


def bootstrapped() -> list[Scenario]:
    """Scenarios in which the coverage of bootstraps is measured."""
    return [
        Scenario(f"seed sd {100 * sd:g} pp, {seeds} seeds", seed_sd=sd, seeds=seeds, effects=(0.0,), items=500)
        for sd in (0.005, 0.025)
        for seeds in (3, 6)
    ]


def stressed() -> list[Scenario]:
    """Seeds far from normal: two peaks in every arm, or rare collapses in all but the reference."""
    two_peaks = Scenario("every second run learns less", seed_sd=0.01, interaction=0.0, humps=1.5)
    return [
        two_peaks,
        replace(two_peaks, name="every second run learns less, 3 seeds", seeds=3),
        Scenario("one run in twenty collapses", seed_sd=0.01, collapse=0.05),
    ]


def _decided() -> list[Scenario]:
    """Data with little noise, in which all four verdicts occur: equivalence and differences in one family."""
    margin = 0.06
    quiet = Scenario("", seed_sd=0.005, spread=4.0, interaction=0.3, items=1000, seeds=6, margin=margin)

    def scenario(name: str, effects: tuple[float, ...], margin: float = margin) -> Scenario:
        return replace(quiet, name=name, effects=effects, margin=margin)

    return [
        scenario("three at the margin, three alike, two apart", (margin, -margin, margin, 0, 0, 0, 0.1, -0.1)),
        scenario("seven at the margin, one alike", (margin,) * 7 + (0.0,)),
        scenario("all at the margin", (margin, -margin) * 4),
        scenario("all half the margin apart", (margin / 2, -margin / 2) * 4),
        scenario("seven far apart, one alike", (0.12, -0.12) * 3 + (0.15, 0.0), margin=0.01),
        scenario("alike, wide margin", (0.0,) * 8),
    ]


def _selected() -> list[Scenario]:
    """Learning rates that matter, so that noisy selection changes the true differences."""
    return [
        Scenario("selection among unequal rates, alike at best", curve=0.02, seed_sd=0.01, items=500),
        Scenario("selection, effects of 5 pp", curve=0.05, effects=(0.05, -0.05) * 4, seed_sd=0.01),
    ]


def compared() -> list[Scenario]:
    """Scenarios in which the other candidates are judged too."""
    return [
        Scenario("seed sd 2.5 pp, 3 seeds", seed_sd=0.025, seeds=3),
        Scenario("seed sd 0.5 pp, 5 seeds", seed_sd=0.005, seeds=5),
        Scenario("seed sd 2.5 pp, 6 seeds", seed_sd=0.025, seeds=6),
        Scenario("seed sd 5 pp, 10 seeds", seed_sd=0.05, seeds=10),
        Scenario("seed sd 2.5 pp, 6 seeds, effects of 8 pp", seed_sd=0.025, effects=(0.08, -0.08) * 4),
    ]


def is_promise(scenario: Scenario) -> bool:
    """Whether power at the printed minimum detectable effect is measured in a scenario."""
    return scenario.name.startswith("promise")


def _promised(sd: float, seeds: int) -> Scenario:
    return Scenario(f"promise, seed sd {100 * sd:g} pp, {seeds} seeds", rate=0.4, seed_sd=sd, seeds=seeds, items=500)
