"""Which rows are gathered in batched products, and which adapter by adapter."""

import pytest
import torch

from lorax.adapters.install import find_targets, install
from lorax.adapters.kinds import effective
from lorax.adapters.routed.gathered import gather, order
from tests.adapters.conftest import KINDS


def adapters_of(*ranks, dropout=0.0, kind="lora", size=40):
    g = torch.Generator().manual_seed(0)
    W = torch.randn(size, size, dtype=torch.float64, generator=g)
    made = [KINDS[kind](W, g, rank) if rank else KINDS["svft"](W, g) for rank in ranks]
    return {lane: factors.build(dropout=dropout) for lane, factors in enumerate(made)}, W


@pytest.mark.parametrize(
    "ranks, rows, gathered",
    [
        ((2, 3), [0, 1, -1], True),
        ((2, 3), [1, 1, 0, -1, 7], True),  # 7 has no adapter here
        ((2, 2, 40), [0, 1, 2], False),  # zeros would prevail
        ((40, 40), [1, 0], True),  # wide, but each for one row
        ((40, 40), [1, 0, 1], False),
        ((4,), [0, 0, -1], False),  # one product is enough
        ((None, 40), [0, 1], True),
    ],
)
def test_gathered_where_it_pays_and_equal_to_one_by_one(ranks, rows, gathered):
    adapters, W = adapters_of(*ranks)
    with torch.no_grad():
        for adapter in adapters.values():
            for p in adapter.parameters():
                p.add_(torch.randn(p.shape, dtype=torch.float64))
        found = gather(adapters, rows)
        assert (found is not None) == gathered
        if found is None:
            return
        for shape in ((len(rows), 40), (len(rows), 3, 40), (len(rows), 2, 3, 40)):
            x = torch.randn(shape, dtype=torch.float64)
            base = x @ W.mT
            alone = [adapters[r].output(x[i], base[i]) if r in adapters else base[i] for i, r in enumerate(rows)]
            torch.testing.assert_close(found.output(x, base), torch.stack(alone), rtol=1e-12, atol=1e-12)


def test_dropout_and_other_kinds_of_adapters_are_not_gathered(net, make):
    adapters, _ = adapters_of(2, 3, dropout=0.5)
    assert gather(adapters, [0, 1]) is None
    for adapter in adapters.values():
        adapter.eval()
    assert gather(adapters, [0, 1]) is not None
    model = net()
    recentred = install(model, [make("pissa", find_targets(model), seed) for seed in range(2)])
    assert gather(model.up.all_adapters(), [0, 1]) is not None and recentred and effective(model.up).shape == (8, 6)


def test_places_follow_the_first_rows():
    low, _ = adapters_of(2, 2, 2)
    assert order(low, [2, -1, 0, 2, 9]) == [0, 1, 2, 0, 1] and order(low, [1, 0]) == [0, 1]
