from __future__ import annotations

import pytest
import torch

from lorax.adapters.dropout import draw, kept, quantise, scale
from lorax.errors import UserError


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_rate_and_scale_belong_together(p):
    q = quantise(p)
    drawn = draw((1000, 333), seed=1, device=torch.device("cpu"))
    mask = 1 - kept(drawn, q, torch.float32)
    rate = mask.double().mean().item()
    assert abs(rate - q / 256) < 4 * (q / 256 * (1 - q / 256) / mask.numel()) ** 0.5
    assert scale(q) * (1 - q / 256) == pytest.approx(1, abs=1e-15)
    by_byte = mask.flatten()[: 8 * 41000].view(-1, 8).double().mean(0)
    assert (by_byte - q / 256).abs().max() < 0.02  # the top byte of a word is as random as the others


def test_the_seed_alone_decides():
    drawn = [draw((7, 5), seed, torch.device("cpu")) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_no_probability(p):
    with pytest.raises(UserError, match="dropout="):
        quantise(p)
