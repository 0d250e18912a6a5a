"""Layers side by side: the results do not depend on the number of cores, and all settings are put back."""

import threading
import time

import pytest
import torch
from torch import nn

from lorax.api import make_factors
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.probing.parallel import all_threads, side_by_side
from lorax.probing.symmetric import one_thread


@pytest.fixture
def threads():
    """Set torch's threads, and put them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def layers(count=12, m=64, n=48):
    torch.manual_seed(0)
    return {str(k): nn.Linear(n + k, m, bias=False) for k in range(count)}


@pytest.mark.parametrize("init", ["lora", "pissa", "svft"])
def test_the_number_of_cores_does_not_show_in_the_factors(init, threads):
    model = nn.ModuleDict(layers(4, 400, 300))

    def factors(number):
        threads(number)
        return make_factors(model, build(init, shared={"rank": 4}), dict(model), seed=3)

    one, several = factors(1), factors(4)
    assert list(one) == list(several)
    for name in one:
        for part in ("B", "A"):
            assert torch.equal(getattr(one[name], part), getattr(several[name], part))


def test_layers_keep_their_order_and_run_on_several_threads_of_one_core(threads):
    threads(4)
    seen = {}
    barrier = threading.Barrier(3, timeout=30)  # three layers at once, or the test fails

    def look(name):
        seen[name] = (threading.current_thread().name, torch.get_num_threads())
        if name in "234":
            barrier.wait()
        return name

    assert list(side_by_side(layers(8), look)) == list("01234567")
    assert {number for _, number in seen.values()} == {1}
    assert torch.get_num_threads() == 4


def test_a_layer_meets_the_callers_modes_and_a_shared_pass_all_threads(threads):
    threads(3)

    def look(name):
        with all_threads():
            number = torch.get_num_threads()
        return number, torch.get_num_threads(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert set(side_by_side(layers(5), look).values()) == {(3, 1, False, True)}
    with torch.inference_mode():
        assert set(side_by_side(layers(5), lambda name: torch.ones(1).is_inference()).values()) == {True}
    assert set(side_by_side(layers(5), look).values()) == {(3, 1, True, False)}


def blas():
    import scipy.linalg.lapack  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return [one.num_threads for one in ThreadpoolController().select(internal_api="openblas").lib_controllers]


def test_an_error_is_raised_and_the_threads_are_put_back(threads):
    threads(3)
    before = blas()

    def look(name):
        if name in "25":
            raise UserError(f"layer {name}")

        with one_thread():
            time.sleep(0.02)

    with pytest.raises(UserError, match="layer 2"):
        side_by_side(layers(8), look)
    assert torch.get_num_threads() == 3 and blas() == before
