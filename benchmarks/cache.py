"""What does the next initialisation cost when the decompositions are in the cache?

Each method attached to the same model with an empty cache folder, then at another rank with the filled one, opened
anew: weights are digested, slices read and checked.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Plan, Row, Watch, say, single
from benchmarks.subjects import Shape, batches_of, initializer, load, sharing_copy
from lorax.adapters.install import find_targets
from lorax.api import make_factors
from lorax.probing.cache import Cache

METHODS = ("pissa", "milora", "lora_xs", "svft", "lora_ga")
SHAPES = (Shape("smollm2", 2, 64), Shape("minilm", 8, 32))
BATCHES = 2


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    for shape in (Shape("tiny", 2, 8),) if plan.quick else SHAPES:
        rows += _model(shape, plan) if plan.wants(shape.model) else []
    return rows


def _model(shape: Shape, plan: Plan) -> list[Row]:
    loaded, rows, slowest = load(shape.model), [], None
    batches = batches_of(loaded, shape, BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            with Watch() as watch:
                first = _seconds(loaded, {"name": method}, batches, Path(folder))
                again = [
                    _seconds(loaded, {"name": method, "rank": 12}, batches, Path(folder)) for _ in range(plan.times(3))
                ]
            say(f"{shape.model} {method}: first {first:.2f} s, next {min(again):.2f} s")
            rows.append(single(shape.model, f"first initialisation: {method}", "s", first, watch=watch))
            rows.append(single(shape.model, f"next initialisation: {method}", "s", again, watch=watch))
            if slowest is None or rows[-1].value.median > slowest.value.median:
                slowest = rows[-1]
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / 1e6
    worst = Row(
        shape.model, "next initialisation: slowest method", "s", slowest.value, slowest.machine, slowest.measure
    )
    return [*rows, worst, single(shape.model, "size of the cache", "MB", size)]


def _seconds(loaded: Any, init: dict[str, Any], batches: list[dict[str, Any]], folder: Path) -> float:
    fresh = sharing_copy(loaded)
    targets = find_targets(fresh.model, head=fresh.head)
    start = time.perf_counter()
    make_factors(fresh.model, initializer(init), targets, batches=batches, cache=Cache(folder))
    return time.perf_counter() - start
