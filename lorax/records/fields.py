"""Facts that records state: method, task, learning rate, digests and versions. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from lorax.records import RunRecord

PLACES = ("task", "model")
"""The parts of a record that hold a digest of their own."""
_STAMP = ("digest", "version")


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level of dotted keys.

    Examples:
        >>> flatten({"init": {"name": "lora", "rank": 8}, "lr": 0.1})
        {'init.name': 'lora', 'init.rank': 8, 'lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def method(record: RunRecord) -> str:
    """Return the name of the run's initialiser."""
    init = record.config.get("init") or record.identity.get("init") or {}
    return str(init.get("name", "?") if isinstance(init, dict) else init)


def task(record: RunRecord) -> str:
    """Return the name of the run's task."""
    name = record.task.get("name") or record.config.get("task") or "?"
    return str(name.get("name", "?") if isinstance(name, dict) else name)


def parts(record: RunRecord) -> list[str]:
    """Return the names of the tasks of a run over several; nothing for a run on one task."""
    listed = record.task.get("parts")
    return [str(part.get("name")) for part in listed if isinstance(part, dict)] if isinstance(listed, list) else []


def settings(record: RunRecord) -> Mapping[str, Any]:
    """Return the settings that the run used: its identity, or its configuration where the identity has no method."""
    return record.identity if "init" in record.identity else record.config


def is_frozen(record: RunRecord) -> bool:
    """Return whether the run trained nothing, so that every seed gives the same run.

    The count of trained parameters decides; a failed run has none, there a missing learning rate decides.
    """
    trained = record.costs.get("trainable")
    return "init" in record.identity and "lr" not in record.identity if trained is None else trained == 0


def learning_rate(record: RunRecord) -> float | None:
    """Return the learning rate that the run trained at, to twelve digits; None where it trained nothing.

    The identity holds it; older records may hold it in the configuration or in the report of the initialiser alone.

    Examples:
        >>> learning_rate(RunRecord("a", "sweep", "finished", {"lr": None}, {"init": {"name": "lora"}, "lr": 1e-3}))
        0.001
    """
    if is_frozen(record):
        return None
    sources = (record.identity, record.config, record.init_report)
    rate = next((source["lr"] for source in sources if source.get("lr") is not None), None)
    return None if rate is None else float(f"{rate:.12g}")


def shots(record: RunRecord) -> int:
    """Return how many worked examples stood in the prompts of a frozen base; trained runs get none."""
    spec = record.config.get("task")
    return int(spec.get("shots") or 0) if isinstance(spec, dict) and is_frozen(record) else 0


def eta_of(record: RunRecord) -> list[float]:
    """Return the etas of a run's layers: one number, both ends of a range, or nothing."""
    eta = record.init_report.get("eta")
    if isinstance(eta, dict):
        eta = list(eta.values())
    values = eta if isinstance(eta, list | tuple) else [eta]
    return [value for value in values if value is not None]


def lower_ranks(record: RunRecord, split: str = "test") -> dict[int, dict[str, Any]]:
    """Return {rank: {score, loss, n, ...}} at the ranks below its own to which a trained run was cut and scored.

    Examples:
        >>> lower_ranks(RunRecord("a", "s", "finished", {}, {}, scores={"test": {"score": 1.0}, "test@2": {"n": 3}}))
        {2: {'n': 3}}
    """
    found = ((key.rpartition("@"), entry) for key, entry in record.scores.items() if entry)
    return {int(rank): entry for (of, _, rank), entry in found if of == split and rank.isdigit()}


def layer_ranks(record: RunRecord) -> dict[str, int]:
    """Return {layer: rank} of a run whose method sets its layers' ranks; empty for others.

    A rule reports them where training decides (`init_report["rule"]["ranks"]`), the layers where the start did.
    """
    rule = record.init_report.get("rule")
    if isinstance(rule, Mapping) and isinstance(rule.get("ranks"), Mapping):
        return {layer: int(rank) for layer, rank in rule["ranks"].items()}
    layers = record.init_report.get("layers") or {}
    return {layer: int(facts["rank"]) for layer, facts in layers.items() if "rank" in facts}


def live(record: RunRecord) -> int | None:
    """Return how many trained values count in the end, heads included; None where all do."""
    rule = record.init_report.get("rule")
    left = rule.get("live") if isinstance(rule, Mapping) else None
    return None if left is None else int(left) + int(record.costs.get("head") or 0)


def moved_at_start(records: Iterable[RunRecord]) -> str | None:
    """Say which methods are not the base model at step 0 by their design, or None where all are.

    Examples:
        >>> config, report = {"init": {"name": "lora_one"}}, {"starts_at_base": False}
        >>> moved_at_start([RunRecord("a", "sweep", "finished", config, {}, init_report=report)])
        'Step 0 is not the base model, by design: lora_one.'
    """
    moved = {method(record) for record in records if record.init_report.get("starts_at_base") is False}
    return f"Step 0 is not the base model, by design: {', '.join(sorted(moved))}." if moved else None


def trained_on_rewards(records: Iterable[RunRecord]) -> str | None:
    """Say which methods were trained on rewards, and what that drew in a run; None where none was.

    Examples:
        >>> config, costs = {"init": {"name": "svf"}}, {"completions": 80, "decoded_tokens": 240}
        >>> run = RunRecord("a", "sweep", "finished", config, {"objective": "reinforce"}, costs=costs)
        >>> print(trained_on_rewards([run]).partition(": ")[2])
        svf, 80 completions of 240 tokens in all a run.
    """
    rewarded = [record for record in records if record.identity.get("objective") == "reinforce"]
    if not rewarded:
        return None
    spans = [
        f"{low:,}" if low == high else f"{low:,} to {high:,}"
        for key in ("completions", "decoded_tokens")
        for numbers in [[int(record.costs.get(key) or 0) for record in rewarded]]
        for low, high in [(min(numbers), max(numbers))]
    ]
    return (
        "Trained on rewards (REINFORCE on the task's scorer, no reference answer is read): "
        f"{', '.join(sorted({method(record) for record in rewarded}))}, {spans[0]} completions of {spans[1]} tokens in "
        "all a run."
    )


def entry(record: RunRecord, place: str) -> dict[str, Any]:
    """Return what the record says about its task or its model.

    Args:
        record: the run.
        place: one of `PLACES`.
    """
    return {"task": record.task, "model": record.model}[place]


def is_stamp(key: str) -> bool:
    """Return whether a dotted key holds a digest or a version rather than a choice."""
    return any(part.rstrip("s").endswith(_STAMP) for part in key.split("."))


def stamps(record: RunRecord) -> dict[str, Any]:
    """Return the digests and versions a record was made under, by dotted key."""
    values = {key: value for key, value in flatten(record.identity).items() if is_stamp(key)}
    for place in PLACES:
        known = entry(record, place)
        values |= {f"{place}.{key}": known[key] for key in _STAMP if known.get(key) is not None}
    return values


def finished_at(record: RunRecord) -> str:
    """Return when a run finished; "", before every date, where that is not known or, by a wrong clock, yet to come."""
    when = str(record.provenance.get("finished") or "")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
    return "" if when > tomorrow else when


def one_per_seed(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Keep one run for each task and seed: one that did not fail, and of several the one that finished last.

    A run that was evaluated on another split has another id, so that one seed may have several records.
    """
    best: dict[Any, RunRecord] = {}
    for record in sorted(records, key=lambda r: (r.status != "failed", finished_at(r))):
        best[task(record), record.config.get("seed")] = record
    return list(best.values())
