"""`python -m benchmarks <name> [--quick] [--json FILE]`: measure one question, write JSON and Markdown."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from lorax.errors import UserError, near

NAMES = (
    "packed", "step", "evaluation", "time_to_table", "init", "svd", "cache", "gradient_pass", "dropout", "operations",
    "gpu", "latency", "switch",
)  # fmt: skip
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", help=f"{', '.join(NAMES)}, or `index` to rewrite the table of goals")
    parser.add_argument("--quick", action="store_true", help="the toy model and few rounds: a test of the benchmark")
    parser.add_argument("--json", type=Path, help="where to write; default results/benchmarks/<name>.json")
    parser.add_argument("--only", default="", help="regular expression: only cases that match")
    parser.add_argument("--rounds", type=int, help="interleaved rounds; default: the benchmark's own")
    parser.add_argument("--device", default="cuda", help="where `gpu` measures; cpu only tries it, with --quick")
    parser.add_argument("--threads", type=int, help="threads of this process; default: torch's")
    try:
        return _run(parser.parse_args(arguments))
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    from benchmarks import report

    if options.name == "index":
        print(report.write_index(RESULTS))
        return 0
    if options.name not in NAMES:
        raise UserError(f"no benchmark {options.name!r}; {near(options.name, (*NAMES, 'index'))}")
    import torch

    from benchmarks.harness import Plan

    if options.threads:
        torch.set_num_threads(options.threads)
    module = importlib.import_module(f"benchmarks.{options.name}")
    plan = Plan(quick=options.quick, only=options.only, device=options.device, rounds=options.rounds)
    rows = module.run(plan)
    if not rows:
        raise UserError(f"--only {options.only}: no case of {options.name} matches")
    path = options.json or (None if options.quick else RESULTS / f"{options.name}.json")
    print(report.publish(options.name, module.__doc__, rows, path, plan))
    if path is not None and path.parent == RESULTS:
        report.write_index(RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
