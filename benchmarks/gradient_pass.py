"""What does LoRA-GA's gradient pass cost beyond a pass without gradients?

The exact gradient of every adapted weight over some batches: seconds over forward and backward to the inputs with
everything frozen, peak memory above the model, and what is left in memory afterwards; by lorax and by PEFT's
`preprocess_loraga`.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Plan, Row, interleave, say, single
from benchmarks.subjects import Shape, batches_of, load, lower_bound, sharing_copy
from benchmarks.worker import Worker
from lorax.adapters.install import find_targets
from lorax.models.registry import Loaded
from lorax.probing.gradient import layer_gradients

SHAPES = (Shape("smollm2", 4, 64), Shape("minilm", 32, 32))
BATCHES = 2


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    for shape in (Shape("tiny", 4, 8),) if plan.quick else SHAPES:
        rows += _seconds(shape, plan) if plan.wants(str(shape)) else []
        rows += _memory(shape) if plan.wants(f"{shape} memory") and not plan.quick else []
    return rows


def _seconds(shape: Shape, plan: Plan) -> list[Row]:
    loaded = load(shape.model)
    arms = {
        "without gradients": lower_bound(sharing_copy(loaded), shape, BATCHES),
        "ours": ours(sharing_copy(loaded), shape),
        "PEFT": peft(sharing_copy(loaded, "sdpa"), shape),
    }
    say(f"{shape} ", end="")
    timings = interleave(arms, plan.times(5))
    return [
        timings.row(str(shape), "ours / pass without gradients", "ours", "without gradients"),
        timings.row(str(shape), "PEFT / pass without gradients", "PEFT", "without gradients"),
        timings.row(str(shape), "PEFT / ours", "PEFT", "ours"),
    ]


def _memory(shape: Shape) -> list[Row]:
    """Peak memory of one pass in a fresh process, and what is held after it; lorax holds its sums in main memory."""
    rows = []
    for name in ("without gradients", "ours", "PEFT"):
        worker = Worker("benchmarks.gradient_pass:fresh", 1, name=name, shape=shape)
        worker.start()
        left = worker.wait()
        peak, before = worker.memory()
        worker.close()
        rows.append(single(str(shape), f"peak memory above the model: {name}", "MB", peak - before))
        if name != "without gradients":
            rows.append(single(str(shape), f"gradients held: {name}", "MB", left / 1e6))
    return rows


def ours(loaded: Loaded, shape: Shape) -> Any:
    """Return one exact pass; it returns no units."""
    batches, targets = batches_of(loaded, shape, BATCHES), find_targets(loaded.model, head=loaded.head)

    def call() -> int:
        layer_gradients(loaded.model, targets, None, batches)
        return BATCHES

    return call


def peft(loaded: Loaded, shape: Shape, keep: bool = False) -> Any:
    """Return PEFT's pass: gradients stay on the modules until the adapters are made.

    Args:
        loaded: a model of its own.
        shape: of the batches.
        keep: leave the gradients, and return their bytes instead of the number of batches.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga

    batches, targets = batches_of(loaded, shape, BATCHES), find_targets(loaded.model, head=loaded.head)
    config = LoraConfig(r=8, target_modules=list(targets), init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())

    def step() -> None:
        for batch in batches:
            loaded.model(**batch).loss.backward()

    def call() -> int:
        preprocess_loraga(loaded.model, config, step)
        held = 0
        for module in targets.values():
            held += module._peft_loraga_grad.numel() * module._peft_loraga_grad.element_size()
            if not keep:
                del module._peft_loraga_grad
        loaded.model.zero_grad(set_to_none=True)
        return held if keep else BATCHES

    return call


def fresh(name: str, shape: Shape) -> Any:
    """Load a model and build one arm; the arm returns the bytes of the gradients that it holds at its end."""
    loaded = load(shape.model)
    if name == "PEFT":
        return peft(loaded, shape, keep=True)
    if name == "without gradients":
        return lower_bound(loaded, shape, BATCHES)
    batches, targets = batches_of(loaded, shape, BATCHES), find_targets(loaded.model, head=loaded.head)

    def call() -> int:
        gradients = layer_gradients(loaded.model, targets, None, batches)
        return sum(gradient.numel() * gradient.element_size() for gradient in gradients.values())

    return call
