"""One optimiser for lanes with numbers of their own is torch's AdamW for each of them."""

import math

import pytest
import torch

from lorax.training.adamw import LaneAdamW, LanePlan
from lorax.training.schedule import factor

PLANS = [
    LanePlan(lambda t: 1e-2 * factor(t, 60, "cosine", 0.1), weight_decay=0.1, clip=0.5),
    LanePlan(lambda t: 3e-3 * factor(t, 70, "linear", 0.2), clip=None),
    LanePlan(lambda t: 5e-2, weight_decay=0.01, clip=2.0),
]
COUNTS = [0, 7, 0]
SHAPE = (3, 4, 6)


def gradients(steps, dtype):
    drawn = torch.randn(steps, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (drawn * 10 ** torch.linspace(-3, 1, steps, dtype=torch.float64)[:, None, None, None]).to(dtype)


def start(dtype):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def stock(k, grads, dtype, shares):
    """Lane k by torch: an optimiser of its own, one group for each half of the columns."""
    halves = [torch.nn.Parameter(start(dtype)[k, :, columns].clone()) for columns in (slice(3), slice(3, 6))]
    optimizer = torch.optim.AdamW([{"params": [half]} for half in halves], lr=1.0, weight_decay=PLANS[k].weight_decay)
    for half in halves if COUNTS[k] else ():  # as after COUNTS[k] steps without a gradient worth naming
        optimizer.state[half] = {
            "step": torch.tensor(float(COUNTS[k])),
            "exp_avg": torch.zeros_like(half),
            "exp_avg_sq": torch.zeros_like(half),
        }
    for step, grad in enumerate(grads):
        for half, columns in zip(halves, (slice(3), slice(3, 6)), strict=True):
            half.grad = grad[k, :, columns].clone()
        if PLANS[k].clip is not None:
            torch.nn.utils.clip_grad_norm_(halves, PLANS[k].clip)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = PLANS[k].rate(COUNTS[k] + step) * share
        optimizer.step()
    return torch.cat([half.detach() for half in halves], 1)


def stacked(grads, dtype, share=None, broken=None):
    values, buffer = start(dtype), torch.zeros(SHAPE, dtype=dtype)
    optimizer = LaneAdamW(values, buffer, PLANS, share)
    for step, grad in enumerate(grads):
        buffer.copy_(grad)
        if broken is not None and step >= broken[0]:
            buffer[broken[1], 0, 0] = broken[2]
        optimizer.prepare([count + step for count in COUNTS], step)
        norms = optimizer.norms()
        optimizer.step(norms, ~norms.isfinite())
    return values, buffer


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("shares", [(1.0, 1.0), (1.0, 16.0)], ids=["one rate", "rates"])
def test_eighty_steps_of_three_lanes_are_torchs(dtype, tolerance, shares):
    """Schedules, decay, clipping and counts differ by lane, rates by tensor; more steps than are prepared at once."""
    grads = gradients(80, dtype)
    share = torch.tensor([[shares[0]] * 3 + [shares[1]] * 3], dtype=dtype).expand(3, 1, 6)
    values, _ = stacked(grads, dtype, None if shares == (1.0, 1.0) else share)
    for k in range(3):
        expected = stock(k, grads, dtype, shares)
        assert (values[k] - expected).norm() <= tolerance * (1 + expected.norm())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_lane_that_is_not_finite_stands_still_and_moves_no_other_bit(value):
    grads = gradients(12, torch.float32)
    before, _ = stacked(grads[:5], torch.float32)
    healthy, _ = stacked(grads, torch.float32)
    values, buffer = stacked(grads, torch.float32, broken=(5, 1, value))
    assert torch.equal(values[1], before[1]) and not buffer[1].any()
    assert torch.equal(values[[0, 2]], healthy[[0, 2]])


def test_the_gradient_is_left_clipped():
    grads = gradients(1, torch.float64) * 1e4
    _, buffer = stacked(grads, torch.float64)
    assert buffer.flatten(1).norm(dim=1).tolist() == pytest.approx([0.5, grads[0, 1].norm().item(), 2.0])
