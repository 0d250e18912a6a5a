from __future__ import annotations

import pytest

from lorax.errors import UserError
from lorax.studies.equal_parameters import nearest, report, trainable

SHAPES = {"q": (64, 64), "up": (256, 64)}


def test_nearest_agrees_with_trying_them_all():
    def count(r):
        return trainable(lambda m, n: r * r, SHAPES)

    for target in (1, 500, 4097, 10_000):
        best = min(range(1, 65), key=lambda r: (abs(count(r) - target), r))
        assert nearest(count, target, "rank", 1, 64).value == best


def test_values_that_the_method_refuses_bound_the_search():
    def count(r):
        if r > 16:
            raise UserError("rank above min(m, n)")
        return 10 * r

    found = nearest(count, 1000, "rank")
    assert found.value == 16 and not found.met and "not matched" in report({"xs": found})[0]
    with pytest.raises(UserError, match="above"):
        nearest(count, 1000, "rank", low=17)


def test_the_report_says_what_was_matched():
    found = nearest(lambda d: 100 * (2 * d + 1), 500, "init.width", 0, 64)
    assert report({"svft": found}) == ["svft: init.width=2 has 500 trainable parameters, 1.00 x 500"]
