"""The value of a field at which an arm has as many trainable parameters as another."""

from __future__ import annotations

import pytest

from lorax.errors import UserError
from lorax.studies.equal_parameters import nearest


@pytest.mark.parametrize("target", [1, 500, 4097, 10_000])
def test_nearest_agrees_with_trying_them_all(target):
    def count(rank):
        return 2 * rank * rank  # LoRA-XS on two layers

    assert nearest(count, target, 1, 64) == min(range(1, 65), key=lambda rank: (abs(count(rank) - target), rank))


def test_values_that_the_method_refuses_bound_the_search():
    def count(rank):
        if rank > 16:
            raise UserError("rank above min(m, n)")
        return 10 * rank

    assert nearest(count, 1000) == 16
    with pytest.raises(UserError, match="above"):
        nearest(count, 1000, low=17)


def test_a_count_met_exactly_is_met():
    assert nearest(lambda width: 100 * (2 * width + 1), 500, 0, 64) == 2
