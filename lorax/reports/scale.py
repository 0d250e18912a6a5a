"""Scale stability as a README: what the papers claim, and what `python -m lorax.diagnostics.scale` found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorax.records import write_atomic
from lorax.reports.figures.scale import SIDES, draw_scale
from lorax.reports.figures.style import save
from lorax.reports.text import markdown

TOLERANCE = 0.1
"""Exponents that differ by less count as equal: a factor of 1.3 over the sixteenfold range of the ranks."""
_LA, _RS = "LoRA-GA", "rsLoRA"
CLAIMS: tuple[tuple[str, str, str, str, dict[str, float]], ...] = (
    (_LA, "zeta ~ sqrt(m) / r: the output keeps its size", "lora_ga", "forward_init", {"r": 0, "m": 0, "n": 0}),
    (_LA, "zeta ~ sqrt(n) / r: the input gradient keeps its size", "lora_ga backward", "backward_init",
     {"r": 0, "m": 0, "n": 0}),
    (_LA, "hence no zeta does both unless m / n is fixed: under the first, the input gradient goes like sqrt(m / n)",
     "lora_ga", "backward_init", {"r": 0, "m": 0.5, "n": -0.5}),
    (_RS, "alpha / sqrt r: the output keeps its size in r", "rslora", "forward_step", {"r": 0}),
    (_RS, "alpha / r: it falls like 1 / r", "lora", "forward_step", {"r": -1}),
    (_RS, "alpha / sqrt r: the input gradient keeps its size in r", "rslora", "backward_step", {"r": 0}),
    (_RS, "alpha / r: it falls like 1 / r", "lora", "backward_step", {"r": -1}),
)  # fmt: skip
"""Paper, claim, setting, moment, exponents claimed."""


def write_scale(measured: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write grid.json, README.md and the figures; return the paths.

    Args:
        measured: what `lorax.diagnostics.scale` measured: `about` and `grids`.
        folder: made when missing.
    """
    paths = [path for name, figure in draw_scale(measured).items() for path in save(figure, folder, name)]
    for name, text in (("grid.json", json.dumps(measured, indent=1) + "\n"), ("README.md", readme(measured))):
        write_atomic(folder / name, text)
        paths.append(folder / name)
    return paths


def readme(measured: Mapping[str, Any]) -> str:
    """Return the README: what is measured, claims against findings, exponents."""
    about, grids = measured["about"], measured["grids"]
    shapes = f"m and n in {_words(about['widths'])}, varied apart with the other at {about['centre']}"
    parts = [
        "# Scale stability in rank and width",
        f"Written by `python -m lorax.diagnostics.scale{' --quick' if about['quick'] else ''}` in "
        f"{about['cpu_seconds']:.0f} s of processor time; not edited by hand. `grid.json` holds every cell.",
        f"W0 has entries N(0, 1/n), inputs x and output gradients v have entries N(0, 1), G is the mean of v x^T over "
        f"the tokens; r in {_words(about['ranks'])}, {shapes}; {about['draws']} draws a cell, second moments averaged. "
        "*Start*: root mean square of the output P x (forward) and of the input gradient P^T v (backward) of "
        "P = eta B0 M0 A0. *Step*: the same of D = dW / lr, the change of the weight by a first SGD step, on the "
        "tokens that it was taken from. All fields at the methods' defaults; `lora_ga` is `zeta_rule=forward`.",
        "Tables give exponents: a of r in moment ~ r^a m^b n^c, by least squares over all cells. `off by`: the "
        "largest factor between a cell and that power law; far above 1, there is no power law, and the exponents "
        "are a summary only.",
        "## What the papers claim, and what was found",
        _claims(grids),
        markdown.bullets(_reading(measured)),
        "## Exponents at the start",
        _table(next(iter(grids.values())), "init"),
        "![start](start.png)",
    ]
    for tokens, grid in grids.items():
        name = "1 token, the case of rsLoRA's theorem" if tokens == "1" else f"{tokens} tokens"
        parts += [f"## Exponents after the first step from {name}", _table(grid, "step"), f"![step](step_{tokens}.png)"]
    return "\n\n".join(parts) + "\n"


def _claims(grids: Mapping[str, Any]) -> str:
    body = []
    for paper, claim, label, moment, claimed in CLAIMS:
        for tokens, grid in grids.items() if moment.endswith("step") else [("", next(iter(grids.values())))]:
            fit = grid[label]["exponents"][moment]
            agrees = all(abs(fit[key] - value) <= TOLERANCE for key, value in claimed.items())
            when = f"first step, {tokens} token{'s' * (tokens != '1')}" if tokens else "start"
            body.append([claim, paper, f"{label}, {moment.split('_')[0]}, {when}", _exponents(claimed),
                         _exponents({key: fit[key] for key in claimed}), "yes" if agrees else "no"])  # fmt: skip
    return markdown.table(["claim", "paper", "measured on", "claimed", "found", "agrees"], body, left=3)


def _reading(measured: Mapping[str, Any]) -> list[str]:
    """Return what the table means; every number in it was measured."""
    grids = measured["grids"]
    single, many = grids["1"], max(grids, key=int)

    def of(grid: Mapping[str, Any], label: str, moment: str, key: str = "r") -> str:
        return f"{round(grid[label]['exponents'][moment][key], 2) + 0:+.2f}"

    return [
        "Claims: LoRA-GA, arXiv:2407.05000 (scale stability; zeta is the factor between the first adapted step and the "
        "full one); rsLoRA, arXiv:2312.03732 (rank-stabilised adapters). An exponent agrees when it is within "
        f"{TOLERANCE:g}: a factor of {16**TOLERANCE:.1f} over a sixteenfold range.",
        "LoRA-GA's statement is about the start. It says nothing about the step: with zeta going "
        f"like 1 / r, what a step of fixed lr adds falls with the rank (forward "
        f"{of(grids[many], 'lora_ga', 'forward_step')} from {many} tokens, "
        f"{of(single, 'lora_ga', 'forward_step')} from one, "
        "where -1 is zeta's and the rest is the energy that more ranks capture of a random gradient).",
        "rsLoRA's statement is about what training makes of B = 0, in expectation over A. Forward, from one token, the "
        f"step is eta^2 |A x|^2, and |A x|^2 goes like r: {of(single, 'rslora', 'forward_step')} for alpha / sqrt r, "
        f"{of(single, 'lora', 'forward_step')} for alpha / r. Backward it is eta^2 A^T A x: its mean goes like r, but "
        "for r far below n its fluctuation, which goes like sqrt r, is larger: "
        f"{of(single, 'rslora', 'backward_step')} and {of(single, 'lora', 'backward_step')}.",
        f"From {many} tokens whose gradients have nothing in common the terms between tokens, which go like sqrt r, "
        f"outweigh each token's own: {of(grids[many], 'rslora', 'forward_step')} for alpha / sqrt r, "
        f"{of(grids[many], 'lora', 'forward_step')} for alpha / r. Real gradients are between the two cases.",
        "The gap between the two scalings is one power of r everywhere, as it must be; which of them is the flat one "
        "depends on the data. Default learning rates are no part of this: all steps are per unit of lr.",
        "PiSSA and MiLoRA start with a part of W0, so their start grows with the rank (forward "
        f"{of(single, 'pissa', 'forward_init')} and {of(single, 'milora', 'forward_init')}); SVFT has no rank. "
        "MiLoRA's is no power law (off by a factor of "
        f"{single['milora']['misfit']['forward_init']:.0f}): a square random W0 has singular values near 0, "
        "an oblong one does not. W0 is random here: the spectra of real weights decay, and PiSSA's start then grows "
        "less.",
    ]


def _table(grid: Mapping[str, Any], stage: str) -> str:
    head, body = ["method"], []
    for side in SIDES:
        head += [f"{side}: r", "m", "n", "off by"]
    for label, measured in grid.items():
        line = [label]
        for side in SIDES:
            fit, off = (measured[part][f"{side}_{stage}"] for part in ("exponents", "misfit"))
            line += (
                ["0 throughout", "", "", ""]
                if fit is None
                else [*(f"{round(fit[k], 2) + 0:+.2f}" for k in "rmn"), f"x {off:.2f}"]
            )
        body.append(line)
    return markdown.table(head, body)


def _exponents(values: Mapping[str, float]) -> str:
    return " ".join(f"{key}^{value + 0:.2g}" for key, value in values.items())


def _words(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
