"""What do adapters add to the latency of a forward pass and of a generated token?

Every arm computes with the same weights; its time is over that of the base alone. A merged LoRA is the base with other
numbers (merged in place its layers stay wrapped, exported they are the model's own), one that is not merged adds two
thin products a layer, and a bottleneck adapter, which cannot be merged, two products and a nonlinearity a site. Rank 8
unless said; d/16 and d/2 are the widths of the papers. Trained values are random: they do not change the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Plan, Row, interleave, say
from benchmarks.subjects import Shape, batches_of, initializer, load, peft_model, sharing_copy
from lorax.api import attach
from lorax.models.registry import Loaded

FORWARD = (Shape("toy", 1, 32), Shape("smollm2", 1, 64), Shape("smollm2", 8, 64))
DECODE = (Shape("toy", 1, 16), Shape("smollm2", 1, 32), Shape("smollm2", 8, 32))
NEW_TOKENS = 16
ROUNDS = {"toy": 40, "smollm2": 9}
PASSES = {"toy": 10}
"""Forward passes of one call: those of a small model are short beside the clock's noise."""
ARMS: dict[str, dict[str, Any]] = {
    "LoRA": {"name": "lora"},
    "Houlsby": {"name": "houlsby"},
    "Pfeiffer": {"name": "pfeiffer"},
    "parallel adapter": {"name": "parallel_adapter"},
    "Houlsby d/16": {"name": "houlsby", "reduction": 16},
    "Pfeiffer d/16": {"name": "pfeiffer", "reduction": 16},
    "parallel adapter d/2": {"name": "parallel_adapter", "reduction": 2},
}


@dataclass(frozen=True)
class Arm:
    """A model ready to be called, and where its adapters' stacked factors may be kept between calls."""

    model: nn.Module
    adapters: Any = None


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    tiny = (Shape("tiny", 2, 8),)
    for kind, shapes, call in (("forward", FORWARD, _forward), ("generate", DECODE, _generate)):
        for shape in tiny if plan.quick else shapes:
            case = f"{shape} {kind}" + ("" if kind == "forward" else f" {NEW_TOKENS} tokens")
            if plan.wants(case):
                rows += _measure(case, shape, call, plan)
    return rows


def _measure(case: str, shape: Shape, call: Callable[[Arm, Any, int], Callable[[], Any]], plan: Plan) -> list[Row]:
    loaded = load(shape.model)
    inputs = batches_of(loaded, shape, 1)[0]["input_ids"]
    few = dict(list(ARMS.items())[:4]) if plan.quick else ARMS
    arms = {name: call(arm, inputs, PASSES.get(shape.model, 1)) for name, arm in _arms(loaded, few).items()}
    say(f"{case} ", end="")
    timings = interleave(arms, plan.times(ROUNDS.get(shape.model, 1)), warmup=0 if plan.quick else 2)
    over = [timings.row(case, f"{name} / base", name, "base") for name in arms if name != "base"]
    return [*over, *(row for row in timings.times(case) if row.measure == "time: base")]


def _arms(loaded: Loaded, inits: dict[str, dict[str, Any]]) -> dict[str, Arm]:
    """Return every arm on a copy that shares the base's weights, but for the merged ones, which change them."""
    arms = {"base": Arm(sharing_copy(loaded).model)}
    merged = copy.deepcopy(loaded.model)
    adapters = shaken(attach(merged, initializer(ARMS["LoRA"]))).merge()
    arms["LoRA merged"] = Arm(merged)
    with adapters.installation.plain():
        arms["LoRA exported merged"] = Arm(copy.deepcopy(merged))
    for name, init in inits.items():
        model = sharing_copy(loaded).model
        arms[name] = Arm(model, shaken(attach(model, initializer(init))))
    arms["PEFT's LoRA"] = Arm(peft_model(sharing_copy(loaded, "sdpa")).eval())
    return arms


@torch.no_grad()
def shaken(adapters: Any) -> Any:
    """Give the trained tensors random values; returns the adapters, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in adapters.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return adapters.eval()


def _forward(arm: Arm, inputs: torch.Tensor, passes: int) -> Callable[[], Any]:
    """Return a call that computes the logits of a batch `passes` times; its unit of work is one pass."""

    def call() -> int:
        with torch.inference_mode():
            for _ in range(passes):
                arm.model(input_ids=inputs, use_cache=False)
        return passes

    return _kept(arm, call)


def _generate(arm: Arm, inputs: torch.Tensor, passes: int) -> Callable[[], Any]:
    """Return a call that decodes greedily after a prompt; its unit of work is a token, the prompt's pass in it."""
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}

    def call() -> int:
        with torch.inference_mode():
            made = arm.model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **settings)  # type: ignore[operator]
        return made.shape[1] - inputs.shape[1]

    return _kept(arm, call)


def _kept(arm: Arm, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call with the adapters' factors held still, as evaluation has them."""

    def held() -> Any:
        with arm.adapters.pack.frozen_factors():
            return call()

    return call if arm.adapters is None else held
