"""Scale stability: does the size of an adapter's output and input gradient depend on r, m and n?

LoRA-GA (arXiv:2407.05000, definition and theorem on scale stability) asks for this: if inputs and output
gradients have entries of order one, then the entries of the adapter's output eta B A x (forward) and of the
gradient at its input, eta A^T B^T v (backward), have second moments that do not depend on rank and width.
rsLoRA (arXiv:2312.03732) asks the same, in the rank, of B after a step from B = 0. Here both are measured for any
method, at the start and for the change by the first SGD step.

`python -m lorax.diagnostics.scale [--quick]` measures the methods of `SETTINGS` and writes `results/scale`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorax.adapters.kinds import linear_with
from lorax.errors import UserError
from lorax.initializers.base import Initializer
from lorax.initializers.registry import build

if TYPE_CHECKING:
    from lorax.probing.cache import Cache

MOMENTS = ("forward_init", "backward_init", "forward_step", "backward_step")
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "rslora": ("lora", {"scaling": "rslora"}),
    "lora_ga": ("lora_ga", {}),
    "lora_ga backward": ("lora_ga", {"zeta_rule": "backward"}),
    "pissa": ("pissa", {}),
    "milora": ("milora", {}),
    "lora_xs": ("lora_xs", {}),
    "svft": ("svft", {}),
}
"""What the command measures: {label: (initialiser, its fields)}; fields not named have the method's defaults."""
RANKS, WIDTHS, CENTRE = (4, 8, 16, 32, 64), (128, 256, 512, 1024), 256
QUICK_RANKS, QUICK_WIDTHS = (4, 16), (64, 256)
TOKENS = (1, 256)


def scale_grid(
    make: Callable[[int], Initializer],
    ranks: Sequence[int],
    shapes: Iterable[tuple[int, int]],
    seed: int = 0,
    tokens: int = 256,
    draws: int = 1,
    cache: Cache | None = None,
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
        shapes: (m, n). Vary m and n independently, else their exponents cannot be separated.
        seed: of everything drawn.
        tokens: T. One token is the case of rsLoRA's theorem (arXiv:2312.03732: the step's size goes like
            eta^2 r); with T far above r the cross terms between tokens dominate, and go like eta^2 sqrt(r).
        draws: independent draws of weight, data and random factors, whose second moments are averaged.
        cache: keeps decompositions, since all methods get the same weights and gradients.

    Returns:
        rows: {r, m, n, and the four moments} of each cell; exponents: {moment: {"r", "m", "n"}} of the
        least-squares fit log moment = const + a log r + b log m + c log n (stable: all near 0; null for
        what does not vary, or where the moment is 0); misfit: {moment: the largest factor between a
        measured moment and that power law}; tokens; draws; seed.

    Raises:
        UserError: an empty grid, or a rank that the method cannot have on a shape.
    """
    cells = [(r, m, n) for r in ranks for m, n in shapes]
    if not cells or tokens < 1 or draws < 1:
        raise UserError(f"scale_grid: ranks={list(ranks)}, tokens={tokens}, draws={draws}: nothing to measure")
    rows = []
    for r, m, n in cells:
        drawn = [moments(make(r), m, n, seed, tokens, draw, cache) for draw in range(draws)]
        means = {key: math.sqrt(sum(of_draw[key] for of_draw in drawn) / draws) for key in MOMENTS}
        rows.append({"r": r, "m": m, "n": n, **means})
    fits = {moment: power_law(rows, moment) for moment in MOMENTS}
    return {
        "rows": [
            {key: float(f"{value:.6g}") if key in MOMENTS else value for key, value in row.items()} for row in rows
        ],
        "exponents": {moment: fit and fit[0] for moment, fit in fits.items()},
        "misfit": {moment: fit and fit[1] for moment, fit in fits.items()},
        "tokens": tokens,
        "draws": draws,
        "seed": seed,
    }


def moments(
    initializer: Initializer, m: int, n: int, seed: int, tokens: int, draw: int = 0, cache: Cache | None = None
) -> dict[str, float]:
    """Return the four mean squares of one draw of a cell."""
    import torch

    from lorax.diagnostics.angles import energy
    from lorax.diagnostics.first_step import sgd
    from lorax.probing.calibration import GivenMatrices
    from lorax.probing.probe import Probe, layer_generator

    name = f"scale {m}x{n} {draw}"
    initializer.check(name, m, n)
    generator = layer_generator(seed, name)
    W0 = torch.randn(m, n, generator=generator) / math.sqrt(n)
    X, V = torch.randn(tokens, n, generator=generator), torch.randn(tokens, m, generator=generator)
    G = V.mT @ X / tokens
    given = GivenMatrices({name: G}, gradient_digest=f"scale seed {seed}, {tokens} tokens")
    # not the seed of the data: a method's random factors must not repeat the data
    probe = Probe(name, linear_with(W0), seed=seed + 1, calibration=given, cache=cache)
    with torch.no_grad():
        factors = initializer(probe)
        start, step = energy(factors.update()), sgd(factors, G)
        return {
            "forward_init": start / m,
            "backward_init": start / n,
            "forward_step": energy(X @ step.mT) / (tokens * m),
            "backward_step": energy(V @ step) / (tokens * n),
        }


def power_law(rows: Sequence[dict[str, Any]], moment: str) -> tuple[dict[str, float | None], float] | None:
    """Return the exponents of r, m, n in a moment, and the largest factor between a cell and the power law.

    None where the moment is not positive everywhere.
    """
    if not all(row[moment] > 0 for row in rows):
        return None
    sizes = {key: np.log([row[key] for row in rows]) for key in ("r", "m", "n")}
    varied = [key for key, values in sizes.items() if np.ptp(values) > 0]
    design = np.column_stack([np.ones(len(rows)), *(sizes[key] for key in varied)])
    logs = np.log([row[moment] for row in rows])
    fit, *_ = np.linalg.lstsq(design, logs, rcond=None)
    exponents = dict(zip(varied, fit[1:], strict=True))
    worst = float(np.exp(np.abs(logs - design @ fit).max()))
    rounded = {key: round(float(exponents[key]), 4) if key in exponents else None for key in ("r", "m", "n")}
    return rounded, round(worst, 4)


def measure_all(quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Return the grids of all `SETTINGS`, as `results/scale/grid.json` holds them.

    Shapes form a cross: m varies while n is at the centre, and n while m is.

    Args:
        quick: few ranks, widths and draws: seconds instead of a minute or two.
        seed: of everything drawn.

    Returns:
        about: what was measured, and in how many seconds of processor time; grids: {tokens: {label: `scale_grid`'s}}.
    """
    from lorax.probing.cache import Cache

    ranks, widths = (QUICK_RANKS, QUICK_WIDTHS) if quick else (RANKS, WIDTHS)
    centre, draws = (64, 2) if quick else (CENTRE, 8)
    shapes = sorted({(m, centre) for m in widths} | {(centre, n) for n in widths})
    about: dict[str, Any] = {"quick": quick, "ranks": list(ranks), "widths": list(widths), "centre": centre}
    about |= {
        "draws": draws,
        "seed": seed,
        "settings": {label: [name, fields] for label, (name, fields) in SETTINGS.items()},
    }
    cache, start, grids = Cache(None), time.process_time(), {}
    for tokens in TOKENS:
        grids[str(tokens)] = {
            label: scale_grid(_maker(name, fields), ranks, shapes, seed, tokens, draws, cache)
            for label, (name, fields) in SETTINGS.items()
        }
    return {"about": about | {"cpu_seconds": round(time.process_time() - start, 1)}, "grids": grids}


def _maker(name: str, fields: dict[str, Any]) -> Callable[[int], Initializer]:
    return lambda r: build(name, shared={"rank": r}, own=fields)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write `<results_dir>/scale`, print the table of exponents; return 0, or 2 after one clear line."""
    parser = argparse.ArgumentParser(prog="python -m lorax.diagnostics.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few cells, a few seconds; prints, writes nothing")
    parser.add_argument("--results-dir", default="results", type=Path)
    parser.add_argument("--seed", default=0, type=int)
    options = parser.parse_args(arguments)
    from lorax.reports.scale import readme, write_scale

    try:
        grids = measure_all(options.quick, options.seed)
        print(readme(grids))
        if not options.quick:
            print("".join(f"wrote {path}\n" for path in write_scale(grids, options.results_dir / "scale")), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
