"""Inner products, energies, cosines and shares, summed in float64; None where a ratio is not defined."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Angle:
    """The angle between two vectors x and y that are given in pieces (the layers of a model)."""

    inner: float = 0.0
    """<x, y>."""
    left: float = 0.0
    """||x||^2."""
    right: float = 0.0
    """||y||^2."""

    def add(self, X: Tensor, Y: Tensor) -> float | None:
        """Add one piece of each vector; return the cosine of these pieces alone."""
        piece = Angle(inner(X, Y), inner(X, X), inner(Y, Y))
        self.inner, self.left, self.right = self.inner + piece.inner, self.left + piece.left, self.right + piece.right
        return piece.cosine

    @property
    def cosine(self) -> float | None:
        """The cosine over all pieces so far; None where a vector is zero or not finite."""
        return share(self.inner, (self.left * self.right) ** 0.5)


def inner(X: Tensor, Y: Tensor) -> float:
    """Return <X, Y>, summed in float64."""
    return float((X.double() * Y.double()).sum())


def energy(X: Tensor) -> float:
    """Return ||X||_F^2, summed in float64."""
    return float(X.double().square().sum())


def cosine(X: Tensor, Y: Tensor) -> float | None:
    """Return <X, Y> / (||X|| ||Y||); None where either is zero.

    Examples:
        >>> import torch
        >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]))
        0.6
        >>> cosine(torch.zeros(2), torch.ones(2)) is None
        True
    """
    return Angle().add(X, Y)


def share(part: float, whole: float) -> float | None:
    """Return part / whole, or None where the whole is zero, infinite or NaN."""
    return part / whole if 0 < whole < float("inf") else None
