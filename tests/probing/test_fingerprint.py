"""Fingerprints of tensors: equal for equal values, and computed again after every change."""

import torch
from torch import nn

from lorax.probing.fingerprint import digest, fingerprint, remembered


def test_fingerprints_tell_values_shapes_and_dtypes_apart():
    x = torch.randn(40, 7)
    others = [x.T, x.view(7, 40), x.double(), x.bfloat16(), -x, x.flip(0), x + 1e-6 * (x == x[3, 3])]
    negated = x.clone()
    negated[2, 1], negated[2, 3] = -negated[2, 1], -negated[2, 3]
    assert len({fingerprint(t) for t in [x, negated, *others]}) == 9
    assert fingerprint(x) == fingerprint(x.clone()) == fingerprint(x.T.contiguous().T)
    assert fingerprint(torch.zeros(0)) and fingerprint(torch.tensor(3))
    assert digest([{"x": x, "n": 3}, "a"]) != digest([{"x": x, "n": 4}, "a"])


def test_a_remembered_fingerprint_notices_every_change():
    weight = nn.Parameter(torch.randn(30, 40))
    seen = [remembered(weight)]
    assert seen[0] == remembered(weight) == fingerprint(weight)
    with torch.no_grad():
        weight[3, 4] += 1
    seen.append(remembered(weight))
    weight.data.add_(1)
    seen.append(remembered(weight))
    weight.data = weight.data * 2
    seen.append(remembered(weight))
    assert len(set(seen)) == 4 and seen[-1] == fingerprint(weight)
