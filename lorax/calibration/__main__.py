"""Measure how often verdicts are wrong: `python -m lorax.calibration [--quick | --methods | --swaps | --redraw]`.

Simulated studies with known true differences go through the functions that the tables call
(`selection.pick`, `best_rate.compare`, `effects.paired_t`, `rule.decide`, `power.detectable`). Reported:
tables with any false verdict (at most 5 %), coverage (93 to 97 %), power at the printed minimum detectable
effect (80 %), the same for the candidates that were not chosen, and label swaps in real records. The exit
status is 1 if a bound of the chosen procedure is broken in a world that the page does not name.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorax.calibration import method_figures, scenarios
from lorax.calibration.measure import ALPHA, CANDIDATES, Measured, bootstrap_coverage, measure, promise, rules
from lorax.calibration.report import render
from lorax.calibration.simulate import Scenario
from lorax.calibration.swaps import swap
from lorax.errors import UserError
from lorax.records import Store, read_json, write_atomic
from lorax.studies.registration import frozen
from lorax.studies.study import final_of, read_study

COVERAGE = (0.93, 0.97)
POWER = (0.74, 0.86)


def calibrate(quick: bool = False, results_dir: str | Path = "results", seed: int = 0) -> dict[str, Any]:
    """Run the calibration and return its figures as plain data.

    Args:
        quick: a few scenarios with a few hundred tables.
        results_dir: where studies with real records are, for label swaps.
        seed: of the simulation.
    """
    tables, fewer = (300, 200) if quick else (4000, 1000)
    chosen = scenarios.quick() if quick else scenarios.full()
    compared = scenarios.compared()[:1] if quick else scenarios.compared()
    bootstrapped = [] if quick else scenarios.bootstrapped()
    return {
        "quick": quick,
        "methods": method_figures.figures(quick, seed),
        "tables": tables,
        "alpha": ALPHA,
        "chosen": [_checked(measure(scenario, tables, seed)[0]) for scenario in chosen],
        "compared": [
            _plain(row) for scenario in compared for row in measure(scenario, fewer, seed + 1, tuple(CANDIDATES))
        ],
        "bootstraps": [
            {"scenario": scenario.name, **bootstrap_coverage(scenario, 300, seed)} for scenario in bootstrapped
        ],
        "rules": rules(40 * fewer, seed),
        "power": POWER,
        "promises": _promises(chosen, tables if quick else tables // 2, seed),
        "stress": [_plain(measure(scenario, 2 * fewer, seed)[0]) for scenario in scenarios.stressed()],
        "swaps": _swaps(Path(results_dir)),
    }


def passed(figures: dict[str, Any]) -> bool:
    """Whether the chosen procedure kept every bound."""
    kept = all(entry["pass"] for entry in figures["chosen"] + figures["promises"])
    kept &= figures["rules"]["stepped"] <= ALPHA + 0.005
    kept &= "methods" not in figures or method_figures.kept(figures["methods"])
    return kept and all(entry["false_tables"] <= max(entry["usual"], ALPHA) for entry in figures["swaps"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lorax.calibration", description=__doc__.split("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="a few scenarios, within a minute on one core")
    mode.add_argument(
        "--methods", action="store_true", help="method against method only, into the last full calibration"
    )
    mode.add_argument("--swaps", action="store_true", help="label swaps only, into the last full calibration")
    mode.add_argument("--redraw", action="store_true", help="only write the page of the last full calibration again")
    parser.add_argument("--results", default="results", help="results folder (default: results)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    folder = Path(options.results) / "calibration"
    stem, page = ("quick", "quick.md") if options.quick else ("full", "README.md")
    try:
        if options.swaps:
            figures = _last(folder) | {"swaps": _swaps(Path(options.results)), "power": POWER}
        elif options.methods:
            figures = _last(folder) | {"methods": method_figures.figures(seed=options.seed)}
        elif options.redraw:
            figures = _last(folder)
        else:
            figures = calibrate(options.quick, options.results, options.seed)
        methods = figures.get("methods")
        paragraphs = method_figures.text(methods) if methods else []
        text = render(figures, passed(figures), paragraphs, method_figures.not_kept(methods) if methods else [])
        write_atomic(folder / f"{stem}.json", json.dumps(figures, indent=1) + "\n")
        write_atomic(folder / page, text)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(text)
    print(f"{time.perf_counter() - start:.0f} s; {folder / page}, {folder / stem}.json")
    return 0 if passed(figures) else 1


def _last(folder: Path) -> dict[str, Any]:
    """Return the figures of the last full calibration."""
    path = folder / "full.json"
    if not path.is_file():
        raise UserError(f"{path}: no full calibration yet; run without --methods, --swaps and --redraw first")
    return read_json(path)


def _promises(chosen: Sequence[Scenario], tables: int, seed: int) -> list[dict[str, Any]]:
    out = []
    for scenario in filter(scenarios.is_promise, chosen):
        measured = promise(scenario, tables, seed)
        if measured is not None:
            kept = POWER[0] <= measured.power <= POWER[1]
            out.append({"scenario": scenario.name, "mde": measured.mde, "power": measured.power, "pass": kept})
    return out


def _swaps(results_dir: Path) -> list[dict[str, Any]]:
    """Return the label swaps of every complete study with records."""
    out = []
    store = Store(results_dir)
    for path in sorted((results_dir / "studies").glob("*.json")):
        spec = frozen(results_dir, path.stem)
        if spec.name not in store.names():
            continue
        study = read_study(spec, store, items=False)
        finals = [
            final_of(record, arm, task, seed, spec.metric, store)
            for (task, arm), runs in study.finals.items()
            for seed, record in runs.items()
            if seed is not None
        ]
        if study.complete and len({final.seed for final in finals}) > 1:
            out.append(asdict(swap(spec.name, finals, spec.margin)))
    return out


def _plain(measured: Measured) -> dict[str, Any]:
    plain = asdict(measured)
    return plain | {"scenario": measured.scenario.name, "settings": plain["scenario"]}


def _checked(measured: Measured) -> dict[str, Any]:
    """Return the figures of a scenario and whether it keeps its bounds.

    False tables: at most 5 %, plus three Monte Carlo errors. Coverage: within its bounds, plus three errors;
    above them is accepted where scores are at floor or ceiling, because the smallest spread assumed is one
    item and the interval is then wider than needed, never narrower.
    """
    at_bound = not 0.05 < measured.scenario.rate < 0.95
    slack = 3 * (0.05 * 0.95 / (measured.tables * len(measured.scenario.effects))) ** 0.5
    kept = measured.false_tables <= ALPHA + 3 * measured.error
    kept &= measured.coverage >= COVERAGE[0] - slack
    kept &= measured.coverage <= COVERAGE[1] + slack or at_bound
    return _plain(measured) | {"error": measured.error, "pass": bool(kept)}


if __name__ == "__main__":
    raise SystemExit(main())
