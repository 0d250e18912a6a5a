import threading

import pytest
import torch
from torch import nn

from lorax.api import make_factors
from lorax.errors import UserError
from lorax.initializers.base import build
from lorax.probing.layers import side_by_side


@pytest.fixture
def threads():
    """Set torch's threads, and put them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def layers(count=12):
    torch.manual_seed(0)
    return {str(k): nn.Linear(48 + k, 64, bias=False) for k in range(count)}


@pytest.mark.parametrize("init", ["lora", "lora_ga", "pissa", "svft"])
def test_the_number_of_cores_does_not_show_in_the_factors(init, threads):
    model = nn.ModuleDict(layers())

    def loss(model, batch):
        return sum((layer(batch[:, : layer.in_features]) ** 2).sum() for layer in model.values())

    def factors(number):
        threads(number)
        initializer, batches = build(init, shared={"rank": 4}), [torch.linspace(-1, 2, 9 * 64).reshape(9, 64)]
        return make_factors(model, initializer, dict(model), loss=loss, batches=batches, seed=3)

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
    assert seen["0"][1] == 4 and {seen[name][1] for name in "1234567"} == {1}
    assert torch.get_num_threads() == 4


def test_the_first_layers_error_is_told_and_the_threads_are_put_back(threads):
    threads(3)

    def look(name):
        if name in "25":
            raise UserError(f"layer {name}")

    with pytest.raises(UserError, match="layer 2"):
        side_by_side(layers(8), look)
    assert torch.get_num_threads() == 3
