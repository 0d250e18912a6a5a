"""What does dropout 0.05 on the adapters' input add to a step?

The same step with and without it, by lorax and by PEFT, in one interleaved comparison.
"""

from __future__ import annotations

from benchmarks.harness import Plan, Row, interleave, say
from benchmarks.subjects import Shape, load, lorax_arm, peft_arm, sharing_copy

SHAPES = (Shape("minilm", 32, 32), Shape("smollm2", 2, 64))
P = 0.05


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    for shape in (Shape("tiny", 4, 8),) if plan.quick else SHAPES:
        if not plan.wants(str(shape)):
            continue
        loaded, lora = load(shape.model), [{"name": "lora"}]
        arms = {
            "ours": lorax_arm(sharing_copy(loaded), shape, lora, steps=2),
            "ours with dropout": lorax_arm(sharing_copy(loaded), shape, lora, steps=2, dropout=P),
            "PEFT": peft_arm(sharing_copy(loaded, "sdpa"), shape, steps=2),
            "PEFT with dropout": peft_arm(sharing_copy(loaded, "sdpa"), shape, steps=2, lora_dropout=P),
        }
        say(f"{shape} ", end="")
        timings = interleave(arms, plan.times(9))
        rows += [
            timings.row(str(shape), "ours: with / without dropout", "ours with dropout", "ours"),
            timings.row(str(shape), "PEFT: with / without dropout", "PEFT with dropout", "PEFT"),
            timings.row(str(shape), "PEFT / ours, both with dropout", "PEFT with dropout", "ours with dropout"),
        ]
    return rows
