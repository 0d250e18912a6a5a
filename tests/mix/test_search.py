"""The cross-entropy method: it finds optima, is the same for a seed, and goes on where it was stopped."""

import math

import numpy as np
import pytest

from lorax.mix.search import Method, State, begin, search

OPTIMUM = np.array([0.7, 0.2, 0.45])


def quadratic(candidates):
    return [(-float(((one - OPTIMUM) ** 2).sum()),) for one in candidates]


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_optimum_of_a_quadratic(seed):
    method = Method(seed=seed)
    found = search(quadratic, begin([1 / 3] * 3, method), method)
    assert np.abs(np.array(found.best) - OPTIMUM).max() < 0.02
    assert found.evaluations == 32 + 49 * 31 and found.generation == 50
    assert min(found.std) >= 0.02 == method.floor


def test_without_the_floor_the_spread_is_lost():
    method = Method(floor=0.0)
    assert max(search(quadratic, begin([1 / 3] * 3, method), method).std) < 1e-3


def test_a_stopped_search_goes_on_as_it_would_have_gone():
    method, kept = Method(generations=9, seed=3, smoothing=0.3), []
    whole = search(quadratic, begin([0.5] * 3, method), method)

    def stop(state):
        kept.append(state.to_dict())
        if state.generation == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(quadratic, begin([0.5] * 3, method), method, stop)
    again = search(quadratic, State(**kept[-1]), method)
    assert again == whole
    other = Method(generations=9, seed=4, smoothing=0.3)
    assert search(quadratic, begin([0.5] * 3, other), other).best != whole.best


def test_the_best_stays_ties_go_to_the_second_part_and_nan_is_the_worst():
    method = Method(generations=3, population=8)

    def coarse(candidates):
        return [(1.0, float(one[0])) if one[1] > 0.1 else (math.nan, 9.0) for one in candidates]

    found = search(coarse, begin([0.5, 0.5], method), method)
    assert found.fitness[0] == 1.0 and found.best[1] > 0.1 and found.fitness[1] == found.best[0]
    best = [entry["best"] for entry in found.history]
    assert best == sorted(best) and all(0 <= part <= 1 for part in found.best)


def test_bounds_clamp_the_start_and_the_samples():
    method, seen = Method(low=-1.5, high=1.5, generations=2, std=5.0), []

    def keep(candidates):
        seen.append(candidates)
        return quadratic(candidates)

    search(keep, begin([9.0, 0.0, 0.0], method), method)
    assert seen[0][0].tolist() == [1.5, 0, 0] and len(seen[1]) == 31
    assert np.abs(np.concatenate(seen)).max() == 1.5
