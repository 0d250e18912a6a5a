import pytest

from lorax.errors import UserError
from lorax.training.schedule import SCHEDULES, factor


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_rises_to_one_and_never_beyond(schedule):
    factors = [factor(step, 40, schedule, 0.1) for step in range(40)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(later <= earlier for earlier, later in zip(factors[4:], factors[5:], strict=False))
    assert min(factors) > 0


def test_ends_and_middle():
    assert factor(19, 20, "constant") == 1
    assert factor(10, 20, "linear") == factor(10, 20, "cosine") == 0.5
    assert factor(0, 1, "cosine", 0.9) == 1


def test_an_unknown_schedule_names_the_near_one():
    with pytest.raises(UserError, match="schedule=cosin: did you mean 'cosine'"):
        factor(0, 10, "cosin")
