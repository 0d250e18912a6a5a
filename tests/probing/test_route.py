"""The ways that a GPU takes to the largest triplets, forced on a CPU: they agree with LAPACK, signs included."""

import pytest
import torch
from torch import nn

from lorax.probing import route, svd
from lorax.probing.cache import Cache
from lorax.probing.probe import Probe


def matrix(m, n, decay):
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(k, min(m, n), generator=g, dtype=torch.float64)).Q for k in (m, n))
    return ((U * torch.logspace(0, -decay, min(m, n), dtype=torch.float64)) @ V.mT).float()


def sine(P, Q):
    return float(torch.linalg.matrix_norm(P - Q @ (Q.mT @ P), 2))


@pytest.mark.parametrize("way", route.WAYS)
@pytest.mark.parametrize("shape", [(160, 160), (192, 160), (160, 192)])
@pytest.mark.parametrize("decay", [0.3, 4.0])
def test_every_way_agrees_with_lapack(way, shape, decay):
    W, r = matrix(*shape, decay), 6
    exact = svd.full(W.double()).rows(slice(0, r))
    with route.forced(way):
        U, S, Vh = (part.double() for part in route.top(W, r))
    assert sine(U, exact.U) <= route.SINE and sine(Vh.mT, exact.Vh.mT) <= route.SINE
    torch.testing.assert_close(S, exact.S, rtol=1e-5, atol=0)
    assert bool(((U * exact.U).sum(0) > 0.99).all()), "the signs differ"


def test_a_bound_that_is_not_reached_ends_in_the_exact_way(monkeypatch):
    W = matrix(160, 160, 0.0)  # all singular values alike: no gap
    asked = []
    exact = svd.top_by_gram_matrix
    monkeypatch.setattr(svd, "top_by_gram_matrix", lambda W, r: asked.append(r) or exact(W, r))
    with route.forced("krylov"):
        assert svd.residual(W.double(), route.top(W, 4)) < 1e-6 and asked == [4]


def test_the_way_follows_the_device_and_enters_the_key_of_the_cache(monkeypatch):
    assert route.way_for(torch.device("cpu")) == "lapack"
    for capability, way in (((9, 0), "gram"), ((8, 0), "gram"), ((8, 9), "krylov"), ((12, 0), "krylov")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert route.way_for(torch.device("cuda")) == way
    monkeypatch.setattr(svd, "DENSE", 32)
    cache, layer = Cache(None), nn.Linear(64, 64)
    for way in route.WAYS:
        with route.forced(way):
            Probe("0", layer, cache=cache).top_svd(4)
    assert len(cache._memory) == 3
