"""Ceilings on what a training step dispatches: exact counts, the same on every machine (`benchmarks.operations`).

They may be lowered, never raised without a reason in the commit.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.operations import Counting, cases, count

CEILINGS = {
    "lora K=1": (306, 2, 1),
    "lora K=8": (307, 2, 1),
    "lora r 2, 4, 8, 16 x 2": (307, 2, 1),
    "lora, pissa, milora, lora_ga x 2": (323, 2, 1),
    "lora, lora_xs, svft x 3": (564, 2, 1),
    "adalora K=8": (2328, 6, 1),
    "dylora K=8": (1388, 10, 9),
}
"""{case: operations, lists turned into tensors, numbers read back, a step at most}."""


IN_SHORT = ("lora K=8", "lora, lora_xs, svft x 3")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in IN_SHORT else pytest.mark.slow) for c in CEILINGS])
def test_a_step_stays_below_its_ceiling(case):
    counted = count(cases()[case])
    assert all(value <= bound for value, bound in zip(vars(counted).values(), CEILINGS[case], strict=True))


def test_what_is_counted():
    x, counter = torch.ones(3, 4), Counting()
    with counter:
        x.view(4, 3).t()  # views
        y = torch.addmm(x, x[:, :3], x.view(3, 4)[:, :])  # one operation
        y[[0, 2]].sum()  # a list and two operations
        torch.tensor([1, 2])
        y.sum().item()  # two operations, of which one reads
    assert (counter.found["operations"], counter.found["lists"], counter.found["reads"]) == (5, 2, 1)
