"""What does an initialisation cost, and does step 0 stay the pretrained model?

Seconds and memory to attach each method, nothing cached, by lorax and by PEFT where PEFT has it; and the largest
change of a logit, and the share of tokens whose most likely successor changes, with a bf16 base.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from benchmarks.harness import Plan, Prepared, Row, interleave, say, single
from benchmarks.subjects import Shape, batches_of, initializer, load, peft_model, sharing_copy
from lorax.adapters.install import find_targets, install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.models.registry import Loaded
from lorax.probing.cache import Cache
from lorax.training.costs import Meter

METHODS = {
    "lora": {"name": "lora"},
    "pissa": {"name": "pissa"},
    "pissa randomised": {"name": "pissa", "svd": "randomised"},
    "milora": {"name": "milora"},
    "lora_xs": {"name": "lora_xs"},
    "svft": {"name": "svft"},
    "lora_ga": {"name": "lora_ga"},
}
PEFT = {"lora": {}, "pissa": {"init_lora_weights": "pissa"}, "lora_ga": {"init_lora_weights": "lora_ga"}}
SHAPES = (Shape("smollm2", 2, 64), Shape("minilm", 8, 32))
BATCHES = 4


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    for shape in (Shape("tiny", 2, 8),) if plan.quick else SHAPES:
        rows += _seconds(shape, plan) if plan.wants(f"{shape.model} init") else []
        rows += _exactness(shape) if plan.wants(f"{shape.model} step 0") else []
    return rows


def _seconds(shape: Shape, plan: Plan) -> list[Row]:
    loaded, rows = load(shape.model), []
    batches = batches_of(loaded, shape, BATCHES)
    case = f"{shape.model}, {BATCHES} batches {shape.rows}x{shape.tokens} for gradients"
    for name, init in METHODS.items():
        arms: dict[str, Any] = {
            "ours": Prepared(lambda: sharing_copy(loaded), lambda fresh, init=init: _attach(fresh, init, batches))
        }
        if name in PEFT:
            arms["PEFT"] = Prepared(lambda: _copy(loaded), lambda fresh, name=name: _peft(fresh, name, batches))
        say(f"{shape.model} {name} ", end="")
        timings = interleave(arms, plan.times(2), warmup=0)
        if "PEFT" in arms:
            rows.append(timings.row(case, f"{name}: PEFT / ours", "PEFT", "ours"))
        for arm in arms:
            rows.append(Row(case, f"{name}: {arm}", "s", timings.seconds(arm), timings.machine))
        with Meter() as meter:
            import psutil

            before = psutil.Process().memory_info().rss / 1e6
            _attach(sharing_copy(loaded), init, batches)
        rows.append(single(case, f"{name}: peak memory above the model, ours", "MB", max(0.0, meter.peak_mb - before)))
    return rows


def _exactness(shape: Shape) -> list[Row]:
    """The change of the logits on 4 x 32 random tokens when a method is attached to a bf16 base."""
    loaded = load(shape.model)
    loaded.model.to(torch.bfloat16)
    batches = batches_of(loaded, Shape(shape.model, 4, 32), 1)
    inputs = {key: value for key, value in batches[0].items() if key != "labels"}
    rows, cache = [], Cache(None)
    with torch.no_grad():
        base = loaded.model(**inputs).logits
        top = base.abs().max()
        ulp = float(torch.nextafter(top, top * 2) - top)
        for name, init in METHODS.items():
            fresh = sharing_copy(loaded)
            try:
                _attach(fresh, init, batches, cache)
            except UserError as error:  # a method may decline a weight that rounding made singular
                say(f"{name}: {error}")
                continue
            rows += _changes(shape, f"{name}, ours", fresh.model(**inputs).logits, base, ulp)
        for name in PEFT:
            fresh = _copy(loaded)
            model = _peft(fresh, name, batches)
            rows += _changes(shape, f"{name}, PEFT", model(**inputs).logits, base, ulp)
        rows.append(_worst(rows))
    return rows


def _changes(shape: Shape, name: str, logits: torch.Tensor, base: torch.Tensor, ulp: float) -> list[Row]:
    case = f"{shape.model} bf16 base"
    largest = float((logits.float() - base.float()).abs().max()) / ulp
    moved = float((logits.argmax(-1) != base.argmax(-1)).float().mean())
    say(f"{case} {name}: {largest:.2f} ulp, argmax moved {moved:.1%}")
    return [
        single(case, f"step-0 change: {name}", "ulp", largest),
        single(case, f"share of argmax moved: {name}", "", moved),
    ]


def _worst(rows: list[Row]) -> Row:
    ours = [row for row in rows if row.measure.startswith("step-0") and row.measure.endswith("ours")]
    return single(ours[0].case, "step-0 change, worst of our methods", "ulp", max(row.value.median for row in ours))


def _attach(loaded: Loaded, init: dict[str, Any], batches: list[dict[str, Any]], cache: Cache | None = None) -> None:
    targets = find_targets(loaded.model, head=loaded.head)
    install(loaded.model, make_factors(loaded.model, initializer(init), targets, batches=batches, cache=cache))


def _copy(loaded: Loaded) -> Loaded:
    """Return a copy with weights of its own, for PEFT's initialisers that write into them."""
    return Loaded(copy.deepcopy(loaded.model), None, loaded.kind, loaded.name, "", loaded.head)


def _peft(loaded: Loaded, name: str, batches: list[dict[str, Any]]) -> Any:
    config = dict(PEFT[name])
    if name == "lora_ga":
        from peft import LoraConfig
        from peft.tuners.lora import LoraGAConfig, preprocess_loraga

        config["lora_ga_config"] = LoraGAConfig()
        settings = LoraConfig(target_modules=list(find_targets(loaded.model, head=loaded.head)), r=8, **config)
        preprocess_loraga(loaded.model, settings, lambda: _backward(loaded.model, batches))
    return peft_model(loaded, **config)


def _backward(model: Any, batches: list[dict[str, Any]]) -> None:
    with torch.enable_grad():
        for batch in batches:
            model(**batch).loss.backward()
