"""What a single run prints when it is over: a few lines, every number from its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorax.records import RunRecord, Store, knobs
from lorax.records.fields import learning_rate, shots
from lorax.records.integrity import SCORED


def show_summary(store: Store, record: RunRecord, tables: list[Path]) -> None:
    """Print scores with intervals, step-0 error, trained share, times, memory, and the paths of record and table."""
    from rich.console import Console
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    for name, text in lines(store, record, tables):
        grid.add_row(name, text)
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    console.print(grid)


def lines(store: Store, record: RunRecord, tables: list[Path]) -> list[tuple[str, str]]:
    """Return the summary as (name, text) pairs."""
    config, costs = record.config, record.costs
    split = "test" if record.scores.get("test") else "validation"
    metric = record.task.get("metric", "score")
    shown = [("run", f"{_title(record)}  on {record.task['name']} ({config['model']['name']}), seed {config['seed']}")]
    base = base_record(store, record)
    if base is not None and base.run_id != record.run_id:
        few = f"  {shots(base)}-shot" if shots(base) else ""
        shown.append(("base", _score(base, split, metric) + few))
    shown.append(("adapted" if costs.get("trainable") else "score", _score(record, split, metric)))
    for part in record.task.get("parts") or []:
        shown.append((f"  {part['name']}", _score(record, split, part["metric"], part["name"])))
    if record.error:
        shown.append((record.status, record.error))
    if costs.get("trainable"):
        report = record.init_report
        share = 100 * (costs.get("share") or 0)
        step0, rate = _number(report.get("step0_error")), learning_rate(record) or float("nan")
        moved = " (by design)" if report.get("starts_at_base") is False else ""
        seconds = "  ".join(f"{name} {costs.get(name + '_seconds') or 0:.1f}" for name in ("init", "train", "eval"))
        if record.identity.get("objective", knobs.LIKELIHOOD) != knobs.LIKELIHOOD:
            drawn = f"{costs.get('completions', 0):,} completions of {costs.get('decoded_tokens', 0):,} tokens in all"
            shown.append(("rewards", f"{record.identity['objective']} on {metric}, {drawn}; no reference answer read"))
        shown += [
            ("step 0", f"largest change of a logit {step0}{moved}, eta {_eta(report.get('eta'))}"),
            (
                "trained",
                f"{costs['trainable']:,} parameters ({share:.2f} % of the model), lr {rate:g}",
            ),
            *_adapted(report),
            ("seconds", f"{seconds}  ({_number(costs.get('step_ms'))} ms a step)"),
        ]
    shown.append(("memory", f"peak {costs.get('peak_mb') or 0:,.0f} MB"))
    shown.append(("record", str(store.path(record.name, record.run_id))))
    if tables:
        shown.append(("table", str(tables[0])))
    return shown


def base_record(store: Store, record: RunRecord) -> RunRecord | None:
    """Return the frozen base's record of the same task, model and split, if there is one."""
    for other in store.read(record.name):
        alike = all(other.identity.get(key) == record.identity.get(key) for key in knobs.EVERY_RUN)
        if alike and other.costs.get("trainable") == 0:
            return other
    return None


def _title(record: RunRecord) -> str:
    init: dict[str, Any] = record.identity.get("init", {})
    rank = init.get("rank", init.get("fields", {}).get("rank") if isinstance(init.get("fields"), dict) else None)
    return record.config["init"]["name"] + (f" rank {rank}" if rank is not None else "")


def _score(record: RunRecord, split: str, metric: str, part: str | None = None) -> str:
    """Return a score in words, with the interval that its number of items allows; a mean over tasks has none."""
    entry = record.scores.get(split)
    several = entry["tasks"] if entry and "tasks" in entry else {}
    if part is not None:
        entry, several = several.get(part), {}
    if not entry or entry.get("score") is None:
        return "not scored"
    from scipy.stats import binomtest

    score, n = entry["score"], int(entry["n"])
    if (sd := entry.get("sd")) is None:  # answers are right or wrong
        low, high = binomtest(round(score * n), n).proportion_ci(method="wilson")
    else:
        low, high = score - 1.96 * sd / n**0.5, score + 1.96 * sd / n**0.5
    interval = f"95 % interval over {n} items {100 * low:.1f} to {100 * high:.1f}"
    text = f"{100 * score:.1f} % {metric}  ({f'{n} items' if several else interval})"
    extra = [f"{key} {100 * entry[key]:.1f} %" for key in ("tolerant", "exact", "bleu") if entry.get(key) is not None]
    extra += [f"answer loss {entry['loss']:.3f}"] if entry.get("loss") is not None else []
    known = {*SCORED, "n"}
    extra += [f"{name} {value:.3f}" for name, value in entry.items() if name not in known and isinstance(value, float)]
    return "  ".join([text, *extra])


def _eta(eta: Any) -> str:
    values = sorted(eta.values()) if isinstance(eta, dict) else sorted(eta) if isinstance(eta, list) else [eta]
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{known[0]:g}" if known[0] == known[-1] else f"{known[0]:g} to {known[-1]:g}"


def _adapted(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the line on what adapters stand on; none for methods without them."""
    coverage = report.get("coverage")
    if coverage is None:
        return []
    parts = [f"{100 * entry['share']:.1f} % {why}" for why, entry in coverage["left_out"].items() if entry["share"]]
    left = f"; left out: {', '.join(parts[:3])}" if parts else ""
    return [("adapts", f"{coverage['layers']} layers, {100 * coverage['share']:.1f} % of the weights{left}")]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
