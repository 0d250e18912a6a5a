"""`python -m lorax.mix <folder> <folder> ... task=<task> model=<model>`: mix saved adapters."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from lorax.errors import UserError
from lorax.run import calm_threads, stoppable
from lorax.running.messages import explain

USAGE = """\
python -m lorax.mix <folder> <folder> ... task=<task> model=<model> [key=value ...]

Finds coefficients for saved adapters of one base (lorax's or PEFT's) by the cross-entropy method on a few items of
the task, scores the mixture, and writes a record and a table like a run. save=<folder> keeps the mixture as an
ordinary adapter.

mix.compose=      sum (of the changes W' - W0) | singular_values (SVF's z, as its paper) | factors (LoraHub's product
                  of sums, cross terms included); default: singular_values where all hold such vectors, else sum
mix.per=          all (a coefficient for each adapter) | layer (for each adapter at each layer)
mix.normalise=    true: coefficients divided by their sum; default: under singular_values only
mix.split= mix.items=   the few items: train | heldout, how many (32); what is scored is never among them
mix.fitness=      score | loss
mix.population= mix.elite= mix.generations= mix.smoothing= mix.std= mix.floor= mix.low= mix.high= mix.l1=
                  the search: 32, 0.2, 50, 0, 0.5, 0.02, 0, 1, 0
mix.lanes=        candidates evaluated at once; default: a whole generation, fewer where memory runs out
LoraHub's own:    mix.compose=factors mix.low=-1.5 mix.high=1.5 mix.l1=0.05 mix.fitness=loss (its optimiser is
                  nevergrad's NGOpt; here it is the same search)
of a run:         task model seed data_seed dtype device evaluate base name results_dir label tag save"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 2 after one clear line, 130 or 143 when it was stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if any(word in ("-h", "--help", "help") for word in words):
        print(USAGE)
        return 0
    try:
        calm_threads(os.environ)
        os.environ["HYDRA_FULL_ERROR"] = "1"
        from lorax.mix.command import mixture
        from lorax.records import Store
        from lorax.reports.write import write_table

        with stoppable():
            record = mixture(words)
            store = Store(record.config["results_dir"])
            _, paths = write_table(store, record.name)
    except KeyboardInterrupt as stop:
        print("lorax: stopped; the same command goes on where this one was", file=sys.stderr)
        return 128 + int((stop.args or (signal.SIGINT,))[0])
    except Exception as error:
        if os.environ.get("LORAX_TRACEBACK") and not isinstance(error, UserError):
            raise
        print(f"lorax: {explain(error)}", file=sys.stderr)
        return 2
    found = record.init_report["mix"]
    for split, entry in record.scores.items():
        print(f"{split:<12}{entry['score']:.4g} over {entry['n']} items")
    first = next(iter(found["coefficients"].values()))
    more = f" at the first of {len(found['coefficients'])} layers" if record.config["init"]["per"] == "layer" else ""
    print(f"{'mixture':<12}{found['compose']}: {', '.join(f'{a:.3g}' for a in first)}{more}")
    print(f"{'search':<12}{found['evaluations']} evaluations, {record.costs['train_seconds']:.1f} s")
    print(f"{'record':<12}{store.path(record.name, record.run_id)}")
    print(f"{'table':<12}{paths[0]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
