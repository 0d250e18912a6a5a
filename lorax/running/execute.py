"""Train and score lanes on one loaded model, and write their records. The part that needs torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from lorax.records import RunRecord, Unwritable
from lorax.running.messages import one_line
from lorax.running.preflight import check_kind
from lorax.running.prepared import Ready, base_of, blank, now


@dataclass
class Work:
    """A lane under way: its configuration and what has been measured so far."""

    ready: Ready
    record: RunRecord
    factors: dict[str, Any] = field(default_factory=dict)
    adapters: Any = None
    items: list[dict[str, Any]] = field(default_factory=list)


def execute(lanes: list[Ready], provenance: dict[str, Any], show: bool) -> None:
    """Run `lanes` to their records, the frozen base first where it is wanted and missing.

    Args:
        lanes: runs that agree on model, task, precision and batch shape; one unless packed.
        provenance: what goes into each record's provenance.
        show: progress bars and one line a phase.
    """
    from lorax.models.registry import load
    from lorax.running.device import placement

    first, task = lanes[0].config, lanes[0].task
    place = placement(first.dtype, first.device)
    labels = list(task.labels) if task.kind == "classification" else None
    loaded = load(first.model, labels=labels, dtype=place.weights, device=place.device, seed=first.seed)
    check_kind(first, task, loaded)
    provenance = provenance | place.facts()
    if first.base and lanes[0].initializer.kind != "none":
        _base(base_of(lanes[0]), loaded, place, provenance, show)
    works = _prepare(lanes, loaded, place, provenance, show)
    if works:
        _run(works, loaded, place, show)


def _base(lane: Ready, loaded: Any, place: Any, provenance: dict[str, Any], show: bool) -> None:
    """Score the frozen base once for this name; another process may be first."""
    with lane.store.claim(lane.config.name, lane.run_id) as found:
        if found is None:
            _run(_prepare([lane], loaded, place, provenance, show), loaded, place, show)


def _prepare(lanes: list[Ready], loaded: Any, place: Any, provenance: dict[str, Any], show: bool) -> list[Work]:
    """Build every lane's factors; a lane that cannot be built is recorded as failed, the others go on."""
    from lorax.training.costs import peak_mb, reset_peak

    works = []
    for lane in lanes:
        record = blank(lane, "finished", None, provenance)
        record.model |= {"dtype": place.name, "attention": loaded.attention, "kind": loaded.kind}
        work = Work(lane, record)
        reset_peak(place.device)
        start = time.perf_counter()
        try:
            work.factors = _factors(lane, loaded, place)
        except Exception as error:
            if show or isinstance(error, Unwritable):
                raise
            lane.store.write(blank(lane, "failed", one_line(error), provenance))
            continue
        record.costs["init_seconds"] = time.perf_counter() - start
        record.costs["init_peak_mb"] = peak_mb(place.device)
        works.append(work)
    return works


def _factors(lane: Ready, loaded: Any, place: Any) -> dict[str, Any]:
    """Return {layer: Factors} for a lane; nothing for arms that have none."""
    from lorax.adapters.install import find_targets
    from lorax.api import make_factors

    if lane.initializer.kind != "adapter":
        return {}
    targets = find_targets(loaded.model, lane.config.targets, head=loaded.head)
    loss, batches = None, None
    if "gradient" in lane.initializer.needs:
        from lorax.running.gradient_batches import calibration

        loss, batches = calibration(lane.task, loaded, lane.config, place)
    cache = _cache(lane)
    return make_factors(
        loaded.model, lane.initializer, targets,
        loss=loss, batches=batches, seed=lane.config.seed, cache=cache,
    )  # fmt: skip


def _cache(lane: Ready) -> Any:
    from lorax.probing.cache import Cache

    return Cache.default() if lane.config.cache == "on" else None


def _run(works: list[Work], loaded: Any, place: Any, show: bool) -> None:
    """Install, check step 0, train, evaluate, record; then leave the base as it was."""
    from lorax.running.diagnose import diagnose, gradients_at_start
    from lorax.running.session import Session

    gradients = gradients_at_start(works[0].ready, loaded, place)
    session = Session(loaded, place, [work.ready for work in works], [work.factors for work in works], show)
    try:
        step0 = session.step0_errors()
        outcomes = session.train()
        scored = session.evaluate()
        for number, work in enumerate(works):
            _fill(work, session, number, step0[number], outcomes[number], scored[number])
            if len(works) > 1:
                _packed(work, works)
            if gradients is not None and work.record.status == "finished":
                work.record.diagnostics = diagnose(session, number, work.factors, gradients)
        session.save()
        works[0].ready.store.write_all([(work.record, work.items) for work in works])
        for work in works:
            work.ready.store.forget_state(work.ready.config.name, work.ready.run_id)
        session.report([work.record for work in works])
    finally:
        session.close()


def _fill(work: Work, session: Any, number: int, step0: float, outcome: Any, scored: tuple[Any, Any, float]) -> None:
    record = work.record
    record.status, record.error, record.curve = outcome.status, outcome.error, outcome.curve
    record.scores, work.items, seconds = scored
    record.init_report |= {"step0_error": step0, **session.init_report(number)}
    record.costs |= session.costs(number) | {
        "train_seconds": outcome.seconds,
        "step_ms": outcome.step_ms,
        "eval_seconds": seconds,
    }
    record.provenance |= {"resumed_at": outcome.resumed or None, "pack": None, "finished": now()}


SOLO = ("init_seconds", "init_peak_mb", "train_seconds", "step_ms", "eval_seconds", "peak_mb")


def _packed(work: Work, works: list[Work]) -> None:
    """Leave a packed lane's costs empty: they belong to the pack, which its provenance names."""
    pack = {"lanes": [other.ready.run_id for other in works]}
    pack |= {key: work.record.costs.get(key) for key in ("train_seconds", "eval_seconds", "peak_mb")}
    work.record.costs |= dict.fromkeys(SOLO)
    work.record.provenance["pack"] = pack
