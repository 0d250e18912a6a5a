"""How well a method's first step follows full fine-tuning, layer by layer and over the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorax.adapters.factors import Factors
from lorax.diagnostics.angles import Angle, energy, share
from lorax.diagnostics.layers import report, sample
from lorax.diagnostics.step import adam, reach, sgd
from lorax.errors import UserError, near
from lorax.probing import svd

STEP = 1e-4  # size of the Adam step applied; only its products of two changes depend on it


def captured(G: Tensor, *ranks: int) -> list[float | None]:
    """Return sum_{i<=r} s_i^2 / ||G||_F^2 for each r: the energy of G's best rank-r approximation (Eckart-Young).

    None for G = 0. One decomposition serves all ranks.
    """
    whole, k = energy(G), min(G.shape)
    if not whole:
        return [None] * len(ranks)
    S = svd.leading(G, min(max(ranks), k)).S
    return [1.0 if r >= k else share(energy(S[:r]), whole) for r in ranks]


def first_step(
    factors: Factors | None, G: Tensor, rank: int, lr: float = STEP, angles: dict[str, Angle] | None = None
) -> dict[str, float | None]:
    """Return the alignment of one layer's first step.

    Args:
        factors: at step 0; None means that the weight itself trains.
        G: (m, n) gradient of the loss at W0.
        rank: r at which captured energy is reported (and 2r).
        lr: of the Adam step.
        angles: gathers the cosines over layers, if given.

    Returns:
        cosine_first: cos(dW_1, -G) of the first SGD step, in closed form as lr -> 0;
        cosine_first_adam: the same for the first Adam step, applied;
        cosine_first_adam_full: cosine of that step with full fine-tuning's own first Adam step, -sign G;
        reach: the best cosine any small step of the trained tensors could have;
        captured_r, captured_2r: gradient energy of the best rank-r, rank-2r approximations;
        optimum_r, optimum_2r: their square roots, the best cosines at rank r and 2r.
    """
    angles = {} if angles is None else angles
    if factors is not None:
        G = G.to(factors.B)
    full = -G / (G.abs() + 1e-8)
    by_sgd, by_adam = (-G, full) if factors is None else (sgd(factors, G), adam(factors, G, lr))
    at = dict(zip(("r", "2r"), captured(G, rank, 2 * rank), strict=True))
    return {
        "cosine_first": angles.setdefault("cosine_first", Angle()).add(by_sgd, -G),
        "cosine_first_adam": angles.setdefault("cosine_first_adam", Angle()).add(by_adam, -G),
        "cosine_first_adam_full": angles.setdefault("cosine_first_adam_full", Angle()).add(by_adam, full),
        "reach": (1.0 if energy(G) else None) if factors is None else reach(factors, G),
        **{f"captured_{where}": value for where, value in at.items()},
        **{f"optimum_{where}": None if value is None else value**0.5 for where, value in at.items()},
    }


@torch.no_grad()
def measure_init(
    factors: Mapping[str, Factors] | None,
    gradients: Mapping[str, Tensor],
    *,
    rank: int | None = None,
    lr: float = STEP,
    layers: int = 1,
) -> dict[str, Any]:
    """Return what can be said about a method before it trains.

    Args:
        factors: {layer: factors at step 0}; None for full fine-tuning.
        gradients: {layer: (m, n) gradient of the loss at W0}.
        rank: r of the captured energies; None takes each layer's own. Give one number to compare
            methods whose ranks mean different things (SVFT has all of them).
        lr: of the Adam step that is applied.
        layers: look at every `layers`-th layer of each kind.

    Returns:
        The metrics of `first_step`, summarised as `layers.report` says; `overall` is the cosine of the
        joint step of all measured layers.

    Raises:
        UserError: a layer has no gradient; no layer at all.
    """
    names = sample(gradients if factors is None else factors, layers)
    if not names:
        raise UserError("diagnostics: no layer to measure")
    angles: dict[str, Angle] = {}
    rows = []
    for name in names:
        if name not in gradients:
            raise UserError(f"diagnostics: no gradient for layer {name}; {near(name, gradients)}")
        here = None if factors is None else factors[name]
        r = rank or (8 if here is None else here.rank)
        rows.append(first_step(here, gradients[name], r, lr, angles))
    headlines, details = report(names, rows, angles)
    return headlines | details
