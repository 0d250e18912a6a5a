"""Mixtures: the factors of a layer from those of experts and a coefficient for each.

    sum               W' - W0 = sum_k a_k eta_k B_k M_k A_k
    singular_values   z = sum_k a_k z_k; with z = 1 + d this is d = sum_k a_k d_k + (sum_k a_k - 1)
    factors           W' - W0 = eta (sum_k a_k B_k M_k) (sum_k a_k A_k)

An expert whose coefficient is exactly 0 is left out, so that e_k is expert k to the bit. `singular_values` is the
equation of Transformer-squared (arXiv:2501.06252); where the coefficients have the sum 1 it is `sum`, elsewhere it
scales W0 too. The authors' code sums the raw vectors without the sigmoid that its experts were trained with, so that
one expert at 1 is not that expert; here z counts, after sigmoid and normalisation. `factors` is LoraHub's
(arXiv:2307.13269), with the cross terms a_k a_j B_k A_j: half an expert, a = 1/2, is a quarter of its change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from lorax.adapters import core
from lorax.adapters.core import Diagonal, Identity, Sparse
from lorax.adapters.factors import Factors
from lorax.errors import UserError
from lorax.mix.experts import Expert, same_basis

Coefficients = Mapping[str, Sequence[float]]
"""{layer: a coefficient for each expert}"""


def layers(experts: Sequence[Expert]) -> list[str]:
    """Return the layers that any expert adapts, sorted."""
    return sorted(set().union(*(expert.factors for expert in experts)))


def check(experts: Sequence[Expert], compose: str, vectors: bool) -> None:
    """Refuse experts that a composition cannot take.

    Args:
        experts: all of them.
        compose: as in `mix`.
        vectors: whether all hold vectors on the weights' singular values.

    Raises:
        UserError: names the expert and the layer.
    """
    if compose == "singular_values" and not vectors:
        raise UserError(
            f"mix.compose=singular_values: needs SVF's vectors; {experts[0].path} and the others are not all"
        )
    if compose != "factors":
        return
    for name in layers(experts):
        first = experts[0].factors.get(name)
        for expert in experts:
            one = expert.factors.get(name)
            if first is None or one is None:
                raise UserError(f"mix.compose=factors: {expert.path if one is None else experts[0].path} lacks {name}")
            if one.A.shape != first.A.shape or one.B.shape[0] != first.B.shape[0] or one.eta != first.eta:
                raise UserError(
                    f"mix.compose=factors: at {name} {expert.path} has rank {one.A.shape[0]}, eta {one.eta:g}, and "
                    f"{experts[0].path} has {first.A.shape[0]}, {first.eta:g}; mix.compose=sum takes both"
                )


@torch.no_grad()
def mix(experts: Sequence[Expert], coefficients: Coefficients, compose: str) -> dict[str, Factors]:
    """Return {layer: factors of the mixture}.

    Args:
        experts: all of them; `check` has passed.
        coefficients: one for each expert at each layer of `layers(experts)`.
        compose: sum | singular_values | factors.
    """
    mixture = {}
    for name in layers(experts):
        pairs = [
            (expert.factors[name], float(a))
            for expert, a in zip(experts, coefficients[name], strict=True)
            if name in expert.factors
        ]
        mixture[name] = _layer([pair for pair in pairs if pair[1] != 0] or [(pairs[0][0], 0.0)], compose)
    return mixture


def _layer(pairs: Sequence[tuple[Factors, float]], compose: str) -> Factors:
    factors, first = [one for one, _ in pairs], pairs[0][0]
    if compose == "singular_values":
        shift = sum(a for _, a in pairs) - 1
        return _summed(pairs, shift)
    if compose == "factors":
        B = sum((a * core.left_multiply(one.B, one.M) for one, a in pairs[1:]), pairs[0][1] * _left(first))
        A = sum((a * one.A for one, a in pairs[1:]), pairs[0][1] * first.A)
        return Factors(B, Identity(), A, first.eta, frozenset("AB"))
    if len(pairs) == 1:
        return replace(first, eta=pairs[0][1] * first.eta)
    if _same_cores(factors) and same_basis(factors):
        return _summed(pairs, 0.0)
    eta = first.eta if all(one.eta == first.eta for one in factors) else 1.0
    shares = [a if one.eta == eta else a * one.eta / eta for one, a in pairs]
    B = torch.cat([share * _left(one) for share, one in zip(shares, factors, strict=True)], 1)
    return Factors(B, Identity(), torch.cat([one.A for one in factors]), eta, frozenset("AB"))


def _left(one: Factors) -> torch.Tensor:
    return core.left_multiply(one.B, one.M)


def _summed(pairs: Sequence[tuple[Factors, float]], shift: float) -> Factors:
    """Return factors of one basis whose core's numbers are the sum of coefficients times the cores' numbers."""
    first, a = pairs[0]
    numbers = a * _numbers(first)
    for one, b in pairs[1:]:
        numbers = numbers + b * _numbers(one)
    if shift:
        numbers = numbers + shift
    return replace(first, M=core.with_values(first.M, numbers), report={})


def _numbers(one: Factors) -> torch.Tensor:
    numbers = core.values(one.M)
    assert numbers is not None  # only factors with a core come here
    return numbers


def _same_cores(factors: Sequence[Factors]) -> bool:
    """Whether the cores are of one kind, one shape and one pattern, and are more than the identity."""
    first = factors[0].M
    if isinstance(first, Identity) or any(core.describe(one.M) != core.describe(first) for one in factors):
        return False
    if isinstance(first, Sparse):
        return all(
            isinstance(one.M, Sparse) and torch.equal(one.M.rows, first.rows) and torch.equal(one.M.cols, first.cols)
            for one in factors
        )
    return isinstance(first, Diagonal) or all(core.shape(one.M) == core.shape(first) for one in factors)
