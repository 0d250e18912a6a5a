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

from lorax.diagnostics.layers import short
from lorax.diagnostics.numbers import energy
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
        tokens: T.

    Returns:
        rows: a {r, m, n, and the four moments} each; exponents: {moment: {"r", "m", "n"}} of the
        least-squares fit log moment = const + a log r + b log m + c log n (stable: all near 0; null for
        what does not vary, or where the moment is 0); tokens; seed.

    Raises:
        UserError: an empty grid, or a rank that the method cannot have on a shape.
    """
    cells = [(r, m, n) for r in ranks for m, n in shapes]
    if not cells or tokens < 1:
        raise UserError(f"scale_grid: ranks={list(ranks)}, tokens={tokens}: nothing to measure")
    rows = [{"r": r, "m": m, "n": n, **moments(make(r), m, n, seed, tokens)} for r, m, n in cells]
    return {
        "rows": [{key: short(value) if key in MOMENTS else value for key, value in row.items()} for row in rows],
        "exponents": {moment: exponents(rows, moment) for moment in MOMENTS},
        "tokens": tokens,
        "seed": seed,
    }


def moments(initializer: Initializer, m: int, n: int, seed: int, tokens: int) -> dict[str, float]:
    """Return the four moments of one cell."""
    initializer.check("grid", m, n)
    generator = layer_generator(seed, f"scale {m} {n}")
    W0 = torch.randn(m, n, generator=generator) / math.sqrt(n)
    X, V = torch.randn(tokens, n, generator=generator), torch.randn(tokens, m, generator=generator)
    G = V.mT @ X / tokens
    factors = initializer(Probe("grid", SimpleNamespace(weight=W0), seed=seed, gradients={"grid": G}))
    start, step = energy(factors.update()), sgd(factors, G)
    return {
        "forward_init": math.sqrt(start / m),
        "backward_init": math.sqrt(start / n),
        "forward_step": math.sqrt(energy(X @ step.mT) / (tokens * m)),
        "backward_step": math.sqrt(energy(V @ step) / (tokens * n)),
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
