"""Scale stability: does the size of an adapter's output and input gradient depend on r, m and n?

LoRA-GA (arXiv:2407.05000, definition and theorem on scale stability) asks that, for inputs and output
gradients with entries of order one, the adapter's output eta B A x (forward) and the gradient that it
sends to its input, eta A^T B^T v (backward), have entries whose second moments do not depend on rank
and width. It is measured here for any method, at the start and for the change by the first SGD step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lorax.diagnostics.angles import energy
from lorax.diagnostics.layers import short
from lorax.diagnostics.step import sgd
from lorax.errors import UserError
from lorax.initializers.base import Initializer
from lorax.probing.probe import Probe, layer_generator

MOMENTS = ("forward_init", "backward_init", "forward_step", "backward_step")


@torch.no_grad()
def scale_grid(
    make: Callable[[int], Initializer],
    ranks: Sequence[int],
    shapes: Iterable[tuple[int, int]],
    seed: int = 0,
    tokens: int = 256,
    draws: int = 1,
) -> dict[str, Any]:
    """Measure the root mean squares of an adapter's output and input gradient over ranks and shapes.

    Each cell draws W0 with entries N(0, 1/n), and `tokens` inputs x_t and output gradients v_t with
    N(0, 1) entries, so G = sum_t v_t x_t^T / tokens. With P = eta B0 M0 A0 and D = dW_1 / lr:

        forward_init  = rms(P x) = ||P||_F / sqrt m      forward_step  = rms over t of D x_t
        backward_init = rms(P^T v) = ||P||_F / sqrt n    backward_step = rms over t of D^T v_t

    the first two in expectation over fresh x and v, exactly. For LoRA the start is 0 (B0 = 0).

    Args:
        make: rank -> initialiser, such as `lambda r: build("lora_ga", shared={"rank": r})`.
        ranks: r.
        shapes: (m, n). Vary m and n apart from each other, else their exponents cannot be told apart.
        seed: of everything drawn.
        tokens: T. One token is the case of rsLoRA's theorem (arXiv:2312.03732: the step's size goes like
            eta^2 r); with T far above r the cross terms between tokens dominate, and go like eta^2 sqrt(r).
        draws: independent draws of weight, data and random factors, whose second moments are averaged.

    Returns:
        rows: a {r, m, n, and the four moments} each; exponents: {moment: {"r", "m", "n"}} of the
        least-squares fit log moment = const + a log r + b log m + c log n (stable: all near 0; null for
        what does not vary, or where the moment is 0); tokens; draws; seed.

    Raises:
        UserError: an empty grid, or a rank that the method cannot have on a shape.
    """
    cells = [(r, m, n) for r in ranks for m, n in shapes]
    if not cells or tokens < 1 or draws < 1:
        raise UserError(f"scale_grid: ranks={list(ranks)}, tokens={tokens}, draws={draws}: nothing to measure")
    rows = []
    for r, m, n in cells:
        found = [moments(make(r), m, n, seed, tokens, draw) for draw in range(draws)]
        means = {key: math.sqrt(sum(one[key] for one in found) / draws) for key in MOMENTS}
        rows.append({"r": r, "m": m, "n": n, **means})
    return {
        "rows": [{key: short(value) if key in MOMENTS else value for key, value in row.items()} for row in rows],
        "exponents": {moment: exponents(rows, moment) for moment in MOMENTS},
        "tokens": tokens,
        "draws": draws,
        "seed": seed,
    }


def moments(initializer: Initializer, m: int, n: int, seed: int, tokens: int, draw: int = 0) -> dict[str, float]:
    """Return the four second moments (mean squares) of one draw of a cell."""
    name = f"scale {m}x{n} {draw}"
    initializer.check(name, m, n)
    generator = layer_generator(seed, name)
    W0 = torch.randn(m, n, generator=generator) / math.sqrt(n)
    X, V = torch.randn(tokens, n, generator=generator), torch.randn(tokens, m, generator=generator)
    G = V.mT @ X / tokens
    # another seed than the data's: a method's own draws must not repeat them
    factors = initializer(Probe(name, SimpleNamespace(weight=W0), seed=seed + 1, gradients={name: G}))
    start, step = energy(factors.update()), sgd(factors, G)
    return {
        "forward_init": start / m,
        "backward_init": start / n,
        "forward_step": energy(X @ step.mT) / (tokens * m),
        "backward_step": energy(V @ step) / (tokens * n),
    }


def exponents(rows: Sequence[dict[str, Any]], moment: str) -> dict[str, float | None] | None:
    """Return the exponents of r, m, n in a moment; None where it is not positive everywhere."""
    if not all(row[moment] > 0 for row in rows):
        return None
    sizes = {key: np.log([row[key] for row in rows]) for key in ("r", "m", "n")}
    varied = [key for key, values in sizes.items() if np.ptp(values) > 0]
    design = np.column_stack([np.ones(len(rows)), *(sizes[key] for key in varied)])
    fit, *_ = np.linalg.lstsq(design, np.log([row[moment] for row in rows]), rcond=None)
    found = dict(zip(varied, fit[1:], strict=True))
    return {key: round(float(found[key]), 4) if key in found else None for key in ("r", "m", "n")}
