from __future__ import annotations

import pytest
import torch
from torch import nn

from lorax.adapters.core import Dense, Diagonal, Identity, Sparse
from lorax.adapters.factors import Factors
from lorax.adapters.kinds import effective

AB, M = frozenset("AB"), frozenset("M")


def _svd(W):
    return torch.linalg.svd(W.double(), full_matrices=False)


def lora(W, g, r=3):
    A = torch.randn(r, W.shape[1], generator=g, dtype=torch.float64)
    return Factors(torch.zeros(W.shape[0], r), Identity(), A, 2.0, AB)


def pissa(W, g, r=2, trainable=AB):
    U, S, Vh = _svd(W)
    root = (S[:r] / 0.5).sqrt()
    return Factors(U[:, :r] * root, Identity(), root[:, None] * Vh[:r], 0.5, trainable, shifts_base=True)


def only_b(W, g):
    return pissa(W, g, 2, frozenset("B"))


def only_a(W, g):
    return pissa(W, g, 3, frozenset("A"))


def xs(W, g, r=3):
    U, S, Vh = _svd(W)
    return Factors(U[:, :r], Dense(torch.zeros(r, r)), S[:r, None] * Vh[:r], 1.5, M)


def svft(W, g, cells=None):
    U, S, Vh = _svd(W)
    k = len(S)
    rows = torch.arange(k) if cells is None else cells[0]
    cols = torch.arange(k) if cells is None else cells[1]
    core = Sparse(rows, cols, torch.zeros(len(rows)), (k, k))
    return Factors(U, core, Vh, 1.0, M, shared=AB)


def banded(W, g):
    k = min(W.shape)
    i, j = torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij")
    return svft(W, g, (i[(i - j).abs() <= 1], j[(i - j).abs() <= 1]))


def adalora(W, g, r=4):
    P = torch.randn(W.shape[0], r, generator=g, dtype=torch.float64)
    Q = torch.randn(r, W.shape[1], generator=g, dtype=torch.float64)
    return Factors(P, Diagonal(torch.zeros(r)), Q, 0.7, frozenset("ABM"))


KINDS = {f.__name__: f for f in (lora, pissa, only_b, only_a, xs, svft, banded, adalora)}


class Net(nn.Module):
    """Two linear layers, wide and tall, one without bias."""

    def __init__(self, dtype=torch.float64, n=6, m=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.up = nn.Linear(n, m, dtype=dtype)
        self.down = nn.Linear(m, 5, bias=False, dtype=dtype)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def factors_for(kind, targets, seed=0):
    """Factors of one hand-made method for every target."""
    g = torch.Generator().manual_seed(seed)
    return {name: KINDS[kind](effective(module), g) for name, module in targets.items()}


@pytest.fixture
def net():
    return Net


@pytest.fixture
def make():
    return factors_for


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def kinds():
    return sorted(KINDS)


@pytest.fixture
def shake():
    """Move every trained tensor away from its start."""

    def move(adapters, size=0.3, seed=1):
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in adapters.parameters():
                p.add_(size * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype))
        return adapters

    return move
