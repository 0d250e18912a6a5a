"""What calibration simulates: seed sd 0.5 to 5 points, 3 to 10 seeds, rates from floor to ceiling."""

from __future__ import annotations

from lorax.calibration.simulate import Scenario

_NULL = (0.0,) * 8


def full() -> list[Scenario]:
    """Scenarios of the whole calibration."""
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
    """A handful that covers every kind, within a minute on one core."""
    return [
        Scenario("no difference, seed sd 2.5 pp, 3 seeds", seed_sd=0.025, seeds=3, items=500),
        Scenario("rate 98 %, 6 seeds", rate=0.98, seed_sd=0.008, items=500),
        Scenario("rate 2 %, 3 seeds", rate=0.02, seed_sd=0.008, seeds=3, items=500),
        _decided()[0],
        _selected()[0],
        _promised(0.025, 6),
    ]


def bootstrapped() -> list[Scenario]:
    """Where bootstraps are held against the truth."""
    return [
        Scenario(f"seed sd {100 * sd:g} pp, {seeds} seeds", seed_sd=sd, seeds=seeds, effects=(0.0,), items=500)
        for sd in (0.005, 0.025)
        for seeds in (3, 6)
    ]


def stressed() -> list[Scenario]:
    """Seeds far from normal: two humps in every arm, rare collapses in all but the reference."""
    humps = {"seed_sd": 0.01, "interaction": 0.0, "humps": 1.5}
    return [
        Scenario("every second run learns less", **humps),
        Scenario("every second run learns less, 3 seeds", seeds=3, **humps),
        Scenario("one run in twenty collapses", seed_sd=0.01, collapse=0.05),
    ]


def _decided() -> list[Scenario]:
    """Quiet data in which verdicts fall: equivalence and differences in one family."""
    quiet = {"seed_sd": 0.005, "spread": 4.0, "interaction": 0.3, "items": 1000, "seeds": 6}
    at = 0.06
    return [
        Scenario(
            "three at the margin, three alike, two apart", effects=(at, -at, at, 0, 0, 0, 0.1, -0.1), margin=at, **quiet
        ),
        Scenario("seven at the margin, one alike", effects=(at,) * 7 + (0.0,), margin=at, **quiet),
        Scenario("all at the margin", effects=(at, -at) * 4, margin=at, **quiet),
        Scenario("all half the margin apart", effects=(at / 2, -at / 2) * 4, margin=at, **quiet),
        Scenario("seven far apart, one alike", effects=(0.12, -0.12) * 3 + (0.15, 0.0), margin=0.01, **quiet),
        Scenario("alike, wide margin", effects=_NULL, margin=at, **quiet),
    ]


def _selected() -> list[Scenario]:
    """Learning rates that matter, so that noisy selection moves what is compared."""
    return [
        Scenario("selection among unequal rates, alike at best", curve=0.02, seed_sd=0.01, items=500),
        Scenario("selection, effects of 5 pp", curve=0.05, effects=(0.05, -0.05) * 4, seed_sd=0.01),
    ]


def _promised(sd: float, seeds: int) -> Scenario:
    return Scenario(f"promise, seed sd {100 * sd:g} pp, {seeds} seeds", rate=0.4, seed_sd=sd, seeds=seeds, items=500)
