"""What the tests of initialisers share: one layer in float64, its gradient, and exact reference answers."""

import torch
from torch import nn

from lorax.api import make_factors
from lorax.initializers.registry import build

M, N, R = 48, 64, 4


def layer(m=M, n=N, dtype=torch.float64):
    return nn.Sequential(nn.Linear(n, m, bias=False)).to(dtype)


def regression(m=M, n=N):
    """A loss whose gradient has a full, decaying spectrum, and its only batch."""
    x = torch.randn(200, n, dtype=torch.float64) * torch.logspace(0, -1.5, n, dtype=torch.float64)
    y = torch.randn(200, m, dtype=torch.float64)
    return (lambda model, batch: (model(batch[0]) - batch[1]).square().sum() / 400), [(x, y)]


def gradient(model, loss, batches):
    weight = model[0].weight
    return torch.autograd.grad(loss(model, batches[0]), weight.requires_grad_(True))[0]


def factors(model, name, *, loss=None, batches=None, seed=0, **fields):
    initializer = build(name, shared={"rank": R} | fields.pop("shared", {}), own=fields)
    return make_factors(model, initializer, loss=loss, batches=batches, seed=seed)["0"]


def first_step(given, G, lr):
    """Delta W after one SGD step on A and B, telescoped."""
    dB, dA = -lr * given.eta * G @ given.A.T, -lr * given.eta * given.B.T @ G
    return given.eta * (dB @ given.A + given.B @ dA + dB @ dA)


def best(matrix, r):
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :r] * S[:r]) @ Vh[:r]


def cosine(a, b):
    return float((a * b).sum() / a.norm() / b.norm())


def close(a, b, tolerance):
    assert float((a - b).norm() / b.norm()) < tolerance
