"""What do packed lanes gain?

K adapters trained on one frozen base in one loop, against one after the other in PEFT, against two PEFT
processes of one thread each, and against lorax one by one. Times are per adapter and step: every lane has its
own batch, head, clipping and optimiser. Rank 8 on all linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness import Plan, Row, interleave, say, single
from benchmarks.subjects import (
    Shape,
    load,
    lorax_arm,
    peft_arm,
    sharing_copy,
    tuned_attention,
)
from benchmarks.worker import Worker, together

CASES = (
    (Shape("minilm", 8, 32), (1, 2, 4, 8, 16)),
    (Shape("minilm", 32, 32), (1, 4)),
    (Shape("smollm2", 2, 64), (1, 4)),
    (Shape("toy", 16, 32), (1, 8)),
    (Shape("minilm", 8, 32, "bf16"), (1, 8)),
    (Shape("smollm2", 2, 64, "bf16"), (1, 4)),
)
MIXED = (
    {"name": "lora"}, {"name": "pissa"}, {"name": "milora"}, {"name": "lora", "rank": 4},
    {"name": "lora_xs"}, {"name": "svft"}, {"name": "lora_ga"}, {"name": "pissa", "rank": 16},
)  # fmt: skip
STEPS = {"tiny": 1, "toy": 8, "minilm": 3, "smollm2": 2}
"""Timed steps of one call with one run. Packs take fewer, so that all calls last about equally long."""


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    for shape, counts in ((Shape("tiny", 4, 8), (1, 2)),) if plan.quick else CASES:
        if plan.wants(str(shape)):
            rows += _packs(shape, counts, plan)
        if plan.wants(f"{shape} processes") and not plan.quick:
            rows += _processes(shape, max(k for k in counts if k <= 8), plan)
        if plan.wants(f"{shape} memory") and not plan.quick:
            rows += _memory(shape, max(k for k in counts if k <= 8))
    shape = Shape("tiny", 4, 8) if plan.quick else Shape("minilm", 8, 32)
    return rows + (_mixed(shape, plan) if plan.wants(f"{shape} mixed") else [])


def _packs(shape: Shape, counts: Sequence[int], plan: Plan) -> list[Row]:
    loaded, steps = load(shape.model), STEPS[shape.model]
    tuned = tuned_attention(loaded, shape, plan.quick)
    arms = {"PEFT": peft_arm(sharing_copy(loaded, "sdpa"), shape, steps)}
    if tuned != "sdpa":
        arms["PEFT tuned"] = peft_arm(sharing_copy(loaded, tuned), shape, steps)
    for count in counts:
        arms[f"packed K={count}"] = lorax_arm(
            sharing_copy(loaded), shape, [{"name": "lora"}] * count, max(1, steps // count)
        )
    say(f"{shape} ", end="")
    timings = interleave(arms, plan.times(9))
    best, note = "PEFT tuned" if tuned != "sdpa" else "PEFT", f"PEFT's fastest attention: {tuned}"
    rows = timings.times(str(shape))
    for count in counts:
        arm = f"packed K={count}"
        rows += [
            timings.row(str(shape), f"PEFT tuned, one by one / {arm}", best, arm, note=note),
            timings.row(str(shape), f"PEFT default, one by one / {arm}", "PEFT", arm),
            timings.row(str(shape), f"ours, one by one / {arm}", "packed K=1", arm),
        ]
    return rows


def _processes(shape: Shape, count: int, plan: Plan) -> list[Row]:
    """One pack with all threads against two processes of one thread each: of PEFT, and of half the pack."""
    loaded, steps = load(shape.model), STEPS[shape.model]
    tuned = tuned_attention(loaded, shape)
    lora = [{"name": "lora"}]
    peft = [Worker("benchmarks.subjects:fresh_peft", 1, shape=shape, attention=tuned, steps=2 * steps) for _ in "ab"]
    half = [
        Worker("benchmarks.subjects:fresh_lorax", 1, shape=shape, inits=lora * (count // 2), steps=steps) for _ in "ab"
    ]
    name, halves = f"packed K={count}", f"two processes of K={count // 2}"
    arms = {
        "two PEFT processes": lambda: together(peft),
        name: lorax_arm(sharing_copy(loaded), shape, lora * count, steps),
        halves: lambda: together(half),
    }
    say(f"{shape} processes ", end="")
    timings = interleave(arms, plan.times(7))
    for worker in [*peft, *half]:
        worker.close()
    case, note = str(shape), f"PEFT's fastest attention: {tuned}"
    return [
        *timings.times(case),
        timings.row(case, f"two PEFT processes / {name}", "two PEFT processes", name, note=note),
        timings.row(case, f"two PEFT processes / {halves}", "two PEFT processes", halves, note=note),
        _best(
            timings.row(case, "", "two PEFT processes", name), timings.row(case, "", "two PEFT processes", halves), note
        ),
    ]


def _best(one_pack: Row, two_packs: Row, note: str) -> Row:
    """Return the better of one pack and two packs in two processes, which the launcher's `processes` offers."""
    row = max(one_pack, two_packs, key=lambda row: row.value.median)
    row.measure, row.note = "two PEFT processes / best of ours", note
    return row


def _memory(shape: Shape, count: int) -> list[Row]:
    """Memory of one more run in a pack: peak of K runs less that of one, in fresh processes; and of a PEFT process."""
    peaks = {}
    for runs in (1, count):
        worker = Worker("benchmarks.subjects:fresh_lorax", 1, shape=shape, inits=[{"name": "lora"}] * runs)
        peaks[runs] = _peak(worker)
    process = _peak(Worker("benchmarks.subjects:fresh_peft", 1, shape=shape))
    return [
        single(str(shape), "memory of one more lane", "MB", (peaks[count] - peaks[1]) / (count - 1)),
        single(str(shape), "memory of one more PEFT process", "MB", process),
    ]


def _peak(worker: Worker) -> float:
    worker.start()
    worker.wait()
    peak, _ = worker.memory()
    worker.close()
    return peak


def _mixed(shape: Shape, plan: Plan) -> list[Row]:
    """A pack of eight methods and ranks against one of eight LoRA runs."""
    loaded, steps = load(shape.model), STEPS[shape.model]
    inits = MIXED[:3] if plan.quick else MIXED
    arms = {
        "LoRA": lorax_arm(sharing_copy(loaded), shape, [{"name": "lora"}] * len(inits), steps),
        "mixed": lorax_arm(sharing_copy(loaded), shape, inits, steps),
    }
    say(f"{shape} mixed ", end="")
    timings = interleave(arms, plan.times(7))
    return [timings.row(str(shape), f"{len(inits)} lanes of mixed methods / of LoRA r 8", "mixed", "LoRA")]
