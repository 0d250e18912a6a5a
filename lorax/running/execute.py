"""Train and score a pack on one loaded model, and write its records. The part that needs torch."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from lorax.probing import CALIBRATED
from lorax.records import Unwritable
from lorax.records.claims import Claimed
from lorax.running.device import Placement, resolve_placement
from lorax.running.launchers.memory import is_out_of_memory
from lorax.running.messages import one_line
from lorax.running.preflight import check_task_fits, class_names, layer_targets, saved_whole, smallest
from lorax.running.prepared import PreparedRun, now
from lorax.running.sharding.processes import is_sharded
from lorax.running.sharding.spread import spread

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.initializers.base import Initializer
    from lorax.models.registry import Loaded
    from lorax.probing.cache import Cache
    from lorax.running.session import Session
    from lorax.training.run import Outcome

PACK_COSTS = ("init_seconds", "init_peak_mb", "train_seconds", "step_ms", "eval_seconds", "peak_mb")
"""Costs that were measured on all runs of a pack together: they are not the cost of one run."""


Work = Callable[["list[PreparedRun]", "Loaded", Placement, dict[str, Any], bool], None]
"""work(runs, loaded, placement, provenance, show): brings runs to their records on a loaded model."""


def execute(runs: list[PreparedRun], provenance: dict[str, Any], show: bool, work: Work | None = None) -> None:
    """Bring the runs of a pack to their records, the frozen base first where it is wanted and missing.

    Args:
        runs: they agree on model, task, precision and batch shape; one unless packed.
        provenance: goes into that of each record.
        show: progress bars, and one line per phase.
        work: how the runs are trained and scored; None: as a pack.
    """
    from lorax.models.registry import load

    work = work or run_loaded

    _set_imports_aside()
    first, task = runs[0].config, runs[0].task
    placement = resolve_placement(first.dtype, first.device)
    labels = class_names(task)
    loaded = load(first.model, labels=labels, dtype=placement.weights, device=placement.device, seed=first.seed)
    check_task_fits(first, task, loaded)
    provenance = provenance | placement.facts()
    base = runs[0].frozen_base() if first.base and runs[0].initializer.trains else None
    elsewhere = False
    if base is not None:
        try:
            _run_if_missing(base, False, work, loaded, placement, provenance, show)
        except Claimed:
            elsewhere = True  # another process scores it: the runs come first, and then a look at what became of it
    work(runs, loaded, placement, provenance, show)
    if base is not None and elsewhere:
        _run_if_missing(base, True, work, loaded, placement, provenance, show)


def _run_if_missing(
    run: PreparedRun,
    wait: bool,
    work: Work,
    loaded: Loaded,
    placement: Placement,
    provenance: dict[str, Any],
    show: bool,
) -> None:
    with run.claim(wait) as record:
        if record is None:
            work([run], loaded, placement, provenance, show)


@cache
def _set_imports_aside() -> None:
    """Once a process: what the imports made stays, so the full collections before each run need not walk it again."""
    gc.collect()
    gc.freeze()


def run_loaded(
    runs: list[PreparedRun], loaded: Loaded, placement: Placement, provenance: dict[str, Any], show: bool
) -> None:
    """Initialise, train and score those runs of a pack whose factors can be built."""
    from lorax.probing.ranks import on_its_own

    config = runs[0].config
    with on_its_own() if is_sharded(config) else nullcontext():
        runs = [run for run in runs if _initialise(run, loaded, placement, provenance, show)]
    if runs:
        _train_and_score(runs, loaded, placement, show)
    else:  # of a spread base a share is held all the same
        with spread(config, loaded, [], placement):
            pass


def _initialise(run: PreparedRun, loaded: Loaded, placement: Placement, provenance: dict[str, Any], show: bool) -> bool:
    """Open a run's record and build its factors; if they cannot be built, record that and return False."""
    from lorax.training.costs import peak_mb, reset_peak

    run.begin(provenance)
    run.record.model |= {"dtype": placement.dtype, "attention": loaded.attention, "kind": loaded.kind}
    reset_peak(placement.device)
    start = time.perf_counter()
    try:
        run.factors = build_factors(run, loaded)
    except Exception as error:
        if show or isinstance(error, Unwritable) or is_out_of_memory(error):
            raise
        run.fail(one_line(error), provenance)
        return False
    run.record.costs["init_seconds"] = time.perf_counter() - start
    run.record.costs["init_peak_mb"] = peak_mb(placement.device)
    return True


def build_factors(
    run: PreparedRun, loaded: Loaded, method: Initializer | None = None, seed: int | None = None
) -> dict[str, Factors]:
    """Return {layer: factors}; nothing for methods without factors.

    Args:
        run: whose coverage is noted.
        loaded: the untouched model.
        method: None: the run's.
        seed: of the random numbers of the start; None: the run's.
    """
    from lorax.adapters.selection.coverage import coverage_of
    from lorax.adapters.targets import select
    from lorax.api.factors import NO_RANK, make_factors
    from lorax.forward.blocks.checkpointing import checkpointed
    from lorax.running.gradient_batches import gradient_batches

    if not run.initializer.has_factors:
        return {}
    method, targets = method or run.initializer, layer_targets(run.config)
    bound = smallest(run.config, method)
    rules = run.config.rules()
    whole = [*loaded.head, *saved_whole(run.config, loaded)]
    selection = select(loaded.model, targets, whole, method.adapts == "module", bound, rules, method.sites)
    run.coverage = coverage_of(loaded.model, selection.chosen, selection.left_out, whole, targets)
    if (line := run.coverage.surprises()) is not None:
        warnings.warn(line, stacklevel=2)
    loss, batches = None, None
    if method.needs & CALIBRATED:
        loss, batches = gradient_batches(run.task, loaded, run.config)
    with checkpointed(loaded.model) if loss and run.config.train.get("checkpointing") else nullcontext():
        plans = make_factors(
            loaded.model, method, selection.chosen,
            loss=loss, batches=batches, seed=run.config.seed if seed is None else seed, cache=open_cache(run),
            rules=rules,
        )  # fmt: skip
    if given_none := dict.fromkeys(selection.chosen.keys() - plans.keys(), NO_RANK):
        run.coverage = coverage_of(loaded.model, plans, selection.left_out | given_none, whole, targets)
    return plans


def open_cache(run: PreparedRun) -> Cache | None:
    """Return the cache of decompositions and gradients, or None where the run wants none."""
    from lorax.probing.cache import Cache

    return Cache.default() if run.config.cache == "on" else None


def _train_and_score(runs: list[PreparedRun], loaded: Loaded, placement: Placement, show: bool) -> None:
    """Install, check step 0, train, evaluate, record; then leave the base as it was."""
    from lorax.running.diagnose import diagnose, gradients_at_start
    from lorax.running.session import Session

    gradients = gradients_at_start(runs[0], loaded)
    session = Session(loaded, placement, runs, open_cache(runs[0]), show)
    try:
        session.check_space()
        with spread(runs[0].config, loaded, session.adapters if session.trains else [], placement):
            step0_errors = session.step0_errors()
            outcomes = session.train()
            seconds = session.evaluate()
        for lane, run in enumerate(runs):
            enter(run, session, lane, step0_errors[lane], outcomes[lane], seconds)
            if len(runs) > 1:
                _move_costs_to_pack(run, runs)
            if gradients is not None and run.record.status == "finished":
                run.record.diagnostics = diagnose(session, lane, gradients)
        session.save()
        runs[0].store.write_all([(run.record, run.items) for run in runs])
        for run in runs:
            run.store.forget_state(run.config.name, run.run_id)
        session.log_results()
    finally:
        session.close()


def enter(
    run: PreparedRun, session: Session, lane: int, step0_error: float, outcome: Outcome, eval_seconds: float
) -> None:
    """Enter what training and evaluation have measured into the run's record."""
    record = run.record
    record.status, record.error, record.curve = outcome.status, outcome.error, outcome.curve
    record.init_report |= {"step0_error": step0_error, **session.init_report(lane)}
    if run.coverage is not None:
        record.init_report["coverage"] = run.coverage.to_dict()
    if outcome.rule_report:
        record.init_report["rule"] = outcome.rule_report
    record.costs |= session.costs(lane) | {
        "train_seconds": outcome.seconds,
        "step_ms": outcome.step_ms,
        "eval_seconds": eval_seconds,
    }
    if "objective" in run.identity:
        record.costs |= _drawn(run, outcome)
    record.provenance |= {
        "resumed_at": outcome.resumed or None,
        "pack": None,
        "compile": outcome.compiled,
        "finished": now(),
    }


def _drawn(run: PreparedRun, outcome: Outcome) -> dict[str, int]:
    """Return what training on rewards has drawn from the model; say so where no reward told anything."""
    completions = run.config.reinforce["samples"] * run.config.batch_size * len(outcome.curve)
    if outcome.curve and not any(row["score"] for row in outcome.curve):
        warnings.warn(
            f"{run.run_id}: none of {completions:,} completions had a score above 0, so no reward told them apart; "
            "start where some are right, as from an adapter trained before (init=from)", stacklevel=2,
        )  # fmt: skip
    return {"completions": completions, "decoded_tokens": sum(int(row["tokens"]) for row in outcome.curve)}


def _move_costs_to_pack(run: PreparedRun, runs: list[PreparedRun]) -> None:
    """Leave a packed run's costs empty: they belong to the pack, which its provenance names."""
    pack: dict[str, Any] = {"lanes": [other.run_id for other in runs]}
    pack |= {key: run.record.costs.get(key) for key in ("train_seconds", "eval_seconds", "peak_mb")}
    run.record.costs |= dict.fromkeys(PACK_COSTS)
    run.record.provenance["pack"] = pack
