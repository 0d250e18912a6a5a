"""What does a training step cost?

One optimiser step (forward, loss, backward, clipping, AdamW) of lorax's own loop against PEFT with default and
with the fastest attention, and against the lower bound: everything frozen, forward and backward to the
inputs, no adapter and no optimiser. Rank 8 on all linear layers, random tokens, the base without dropout.
"""

from __future__ import annotations

from benchmarks.harness import Plan, Row, interleave, say, single
from benchmarks.subjects import (
    Shape,
    load,
    lorax_arm,
    lower_bound,
    peft_arm,
    sharing_copy,
    tuned_attention,
)
from benchmarks.worker import Worker

SHAPES = (
    Shape("minilm", 32, 32),
    Shape("smollm2", 8, 64),
    Shape("smollm2", 8, 64, labelled=0.5),
    Shape("smollm2", 8, 64, labelled=0.125),
    Shape("minilm", 8, 32),
    Shape("toy", 16, 32),
    Shape("minilm", 32, 32, "bf16"),
)
METHODS = {
    "PiSSA (carried, as LoRA-GA and MiLoRA)": {"name": "pissa"},
    "LoRA-XS": {"name": "lora_xs"},
    "SVFT plain": {"name": "svft", "pattern": "plain"},
}
METHOD_SHAPES = (Shape("minilm", 32, 32), Shape("smollm2", 8, 64))
RANK_SHAPES = (Shape("minilm", 32, 32),)
MEMORY_SHAPES = (Shape("minilm", 8, 32), Shape("smollm2", 2, 64))


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    tiny = (Shape("tiny", 4, 8),)
    for shape in tiny if plan.quick else SHAPES:
        rows += _against_peft(shape, plan) if plan.wants(str(shape)) else []
    for shape in tiny if plan.quick else METHOD_SHAPES:
        rows += _methods(shape, plan) if plan.wants(f"{shape} methods") else []
    for shape in () if plan.quick else RANK_SHAPES:
        rows += _rank(shape, plan) if plan.wants(f"{shape} r 64") else []
    for shape in () if plan.quick else MEMORY_SHAPES:
        rows += _memory(shape) if plan.wants(f"{shape} memory") else []
    return rows


def _against_peft(shape: Shape, plan: Plan) -> list[Row]:
    loaded = load(shape.model)
    tuned = tuned_attention(loaded, shape, plan.quick)
    steps = _steps(shape)
    arms = {
        "lower bound": lower_bound(sharing_copy(loaded), shape, steps),
        "ours": lorax_arm(sharing_copy(loaded), shape, steps=steps),
        "PEFT": peft_arm(sharing_copy(loaded, "sdpa"), shape, steps),
    }
    if tuned != "sdpa":
        arms["PEFT tuned"] = peft_arm(sharing_copy(loaded, tuned), shape, steps)
    say(f"{shape} ", end="")
    timings = interleave(arms, plan.times(9))
    best = "PEFT tuned" if tuned != "sdpa" else "PEFT"
    case, note = str(shape), f"PEFT's fastest attention: {tuned}"
    return [
        timings.row(case, "ours / lower bound", "ours", "lower bound"),
        timings.row(case, "PEFT tuned / lower bound", best, "lower bound", note=note),
        timings.row(case, "PEFT default / ours", "PEFT", "ours"),
        timings.row(case, "PEFT tuned / ours", best, "ours", note=note),
        *timings.times(case),
    ]


def _methods(shape: Shape, plan: Plan) -> list[Row]:
    loaded, steps = load(shape.model), _steps(shape)
    arms = {"LoRA": lorax_arm(sharing_copy(loaded), shape, steps=steps)}
    for name, init in METHODS.items():
        arms[name] = lorax_arm(sharing_copy(loaded), shape, [init], steps)
    say(f"{shape} methods ", end="")
    timings = interleave(arms, plan.times(7))
    return [timings.row(str(shape), f"{name} / LoRA, ours", name, "LoRA") for name in METHODS]


def _rank(shape: Shape, plan: Plan) -> list[Row]:
    loaded, steps = load(shape.model), _steps(shape)
    arms = {
        "ours": lorax_arm(sharing_copy(loaded), shape, [{"name": "lora", "rank": 64}], steps),
        "PEFT": peft_arm(sharing_copy(loaded, "sdpa"), shape, steps, r=64),
    }
    say(f"{shape} r 64 ", end="")
    timings = interleave(arms, plan.times(7))
    return [timings.row(f"{shape}, r 64", "PEFT default / ours", "PEFT", "ours"), *timings.times(f"{shape}, r 64")]


def _memory(shape: Shape) -> list[Row]:
    """Peak of two steps in a fresh process, above the loaded model with its adapters."""
    arms = {
        "ours": ("benchmarks.subjects:fresh_lorax", {"inits": [{"name": "lora"}]}),
        "PEFT": ("benchmarks.subjects:fresh_peft", {}),
    }
    rows = []
    for name, (factory, arguments) in arms.items():
        worker = Worker(factory, 1, shape=shape, **arguments)
        worker.start()
        worker.wait()
        peak, before = worker.memory()
        worker.close()
        rows.append(single(str(shape), f"memory of a step: {name}", "MB", peak - before))
    return rows


def _steps(shape: Shape) -> int:
    """Timed steps of one call."""
    return {"tiny": 1, "toy": 8, "minilm": 2, "smollm2": 1}[shape.model]
