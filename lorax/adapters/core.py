"""The closed family of cores M between B and A: identity, diagonal, dense, sparse.

    update = eta * B M A        M: (r_out, r_in)

A new method brings data, never a new kind of core; every `match` here raises at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Identity:
    """M = I: B and A meet directly."""


@dataclass(frozen=True)
class Diagonal:
    """M = diag(values)."""

    values: Tensor
    """(r,)"""


@dataclass(frozen=True)
class Dense:
    """M = values."""

    values: Tensor
    """(r_out, r_in)"""


@dataclass(frozen=True)
class Sparse:
    """M[rows[i], cols[i]] = values[i] on distinct cells, zero elsewhere."""

    rows: Tensor
    """(nnz,) int64"""
    cols: Tensor
    """(nnz,) int64"""
    values: Tensor
    """(nnz,)"""
    shape: tuple[int, int]
    """(r_out, r_in)"""


Core = Identity | Diagonal | Dense | Sparse


def values(core: Core) -> Tensor | None:
    """Return the numbers of the core, or None for the identity."""
    return None if isinstance(core, Identity) else core.values


def with_values(core: Core, new: Tensor | None) -> Core:
    """Return the same kind of core, with the same pattern, holding other numbers."""
    if isinstance(core, Identity):
        return core
    if new is None:
        raise TypeError(f"a {type(core).__name__} core needs numbers")
    match core:
        case Diagonal():
            return Diagonal(new)
        case Dense():
            return Dense(new)
        case Sparse():
            return Sparse(core.rows, core.cols, new, core.shape)
    raise TypeError(f"unknown core {type(core).__name__}")


def shape(core: Core) -> tuple[int, int] | None:
    """Return (r_out, r_in), or None for the identity, which fits any rank."""
    match core:
        case Identity():
            return None
        case Diagonal():
            return (core.values.shape[0], core.values.shape[0])
        case Dense():
            return (core.values.shape[0], core.values.shape[1])
        case Sparse():
            return core.shape
    raise TypeError(f"unknown core {type(core).__name__}")


def dense(core: Core, r: int, like: Tensor) -> Tensor:
    """Return M as an (r_out, r_in) matrix; differentiable in the core's values.

    Args:
        core: any core.
        r: the rank, used by the identity.
        like: gives dtype and device.
    """
    match core:
        case Identity():
            return torch.eye(r, dtype=like.dtype, device=like.device)
        case Diagonal():
            return torch.diag(core.values.to(like.dtype))
        case Dense():
            return core.values.to(like.dtype)
        case Sparse():
            zero = torch.zeros(core.shape, dtype=like.dtype, device=like.device)
            return zero.index_put((core.rows, core.cols), core.values.to(like.dtype), accumulate=True)
    raise TypeError(f"unknown core {type(core).__name__}")


def apply(core: Core, h: Tensor) -> Tensor:
    """Return h M^T for h of shape (..., r_in), in the dtype of h; differentiable."""
    match core:
        case Identity():
            return h
        case Diagonal():
            return h * core.values.to(h.dtype)
        case Dense() | Sparse():
            return h @ dense(core, h.shape[-1], h).mT
    raise TypeError(f"unknown core {type(core).__name__}")


def left_multiply(B: Tensor, core: Core) -> Tensor:
    """Return B M, (m, r_in)."""
    match core:
        case Identity():
            return B
        case Diagonal():
            return B * core.values.to(B.dtype)
        case Dense() | Sparse():
            return B @ dense(core, B.shape[1], B)
    raise TypeError(f"unknown core {type(core).__name__}")


def is_diagonal(core: Core) -> bool:
    """Whether only diagonal cells can differ from zero (the identity counts as no core)."""
    match core:
        case Diagonal():
            return True
        case Sparse():
            return core.shape[0] == core.shape[1] and torch.equal(core.rows, core.cols)
        case Identity() | Dense():
            return False
    raise TypeError(f"unknown core {type(core).__name__}")


def diagonal(core: Diagonal | Sparse) -> Tensor:
    """Return the diagonal of a core for which `is_diagonal` holds, (r,)."""
    if isinstance(core, Diagonal):
        return core.values
    return core.values.new_zeros(core.shape[0]).index_put((core.rows,), core.values)


def values_at(core: Core, full: Tensor) -> Tensor:
    """Return a matrix's entries at the cells that the core holds, in the order of its numbers.

    Applied to the gradient of M as a matrix, it gives the gradient of the numbers.

    Args:
        core: any core but the identity.
        full: (>= r_out, >= r_in), or the diagonal of such a matrix, (>= r,).
    """
    match core:
        case Diagonal():
            r = core.values.shape[0]
            return (full if full.ndim == 1 else full.diagonal())[:r]
        case Dense():
            return full[: core.values.shape[0], : core.values.shape[1]]
        case Sparse():
            return full[core.rows] if full.ndim == 1 else full[core.rows, core.cols]
    raise TypeError(f"unknown core {type(core).__name__}")


def describe(core: Core) -> dict[str, Any]:
    """Return the kind and pattern shape as plain data, for a file's header."""
    match core:
        case Identity():
            return {"kind": "identity"}
        case Diagonal():
            return {"kind": "diagonal"}
        case Dense():
            return {"kind": "dense"}
        case Sparse():
            return {"kind": "sparse", "shape": list(core.shape)}
    raise TypeError(f"unknown core {type(core).__name__}")


def restore(header: dict[str, Any], tensors: Mapping[str, Any]) -> Core:
    """Build a core from `describe` and its tensors (M, and rows, cols for a sparse one)."""
    match header["kind"]:
        case "identity":
            return Identity()
        case "diagonal":
            return Diagonal(tensors["M"])
        case "dense":
            return Dense(tensors["M"])
        case "sparse":
            return Sparse(tensors["rows"], tensors["cols"], tensors["M"], tuple(header["shape"]))
    raise TypeError(f"unknown core {header['kind']!r}")
