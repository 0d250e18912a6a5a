"""What does greedy evaluation of K trained adapters cost?

A lane is trained for some steps, exported to PEFT, and copied to K lanes; then lorax scores a test split for all K
together, and PEFT's `generate` (one adapter at a time, sorted by length, same batch) for one adapter a call. Times are
per adapter. Lorax's time includes the loss of the reference answers, which PEFT's does not. The share of items on which
both score alike is a row of its own.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from benchmarks.harness import Plan, Row, interleave, say, single
from benchmarks.subjects import load, sharing_copy
from lorax import tasks
from lorax.adapters.install import install
from lorax.api import attach
from lorax.evaluation.evaluate import evaluate
from lorax.forward.batch import Encoded
from lorax.forward.generation import CausalText, end_tokens
from lorax.forward.modality import modality_of
from lorax.models.registry import Loaded
from lorax.training.loop import Run, TrainPlan, train

TASKS = {
    "tiny": {"name": "toy", "n_test": 8},
    "smollm2": {
        "name": "chain_sum", "family": "reasoning_gym", "n_train": 200, "n_validation": 16, "n_test": 48,
        "settings": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 3},
    },
}  # fmt: skip
BATCH = 16


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    for name in ("tiny",) if plan.quick else ("smollm2",):
        if plan.wants(name):
            rows += _model(name, 2 if plan.quick else 8, plan)
    return rows


def _model(name: str, count: int, plan: Plan) -> list[Row]:
    from peft import PeftModel

    loaded = load(name)
    task = tasks.load(TASKS[name], 0)
    trained = _trained(sharing_copy(loaded), task, steps=2 if plan.quick else 30)
    many = sharing_copy(loaded)
    adapters = install(many.model, [trained.factors()] * count)
    with tempfile.TemporaryDirectory() as folder:
        trained.export_peft(folder)
        theirs = sharing_copy(loaded, "sdpa")
        theirs.model = PeftModel.from_pretrained(theirs.model, folder).eval()
    rows = modality_of(loaded).encode(task, "test")
    scores: dict[str, list[int]] = {}

    def ours(verify: bool = True) -> int:
        evaluated = evaluate(many, task, "test", adapters, batch_size=BATCH, modality=CausalText(many, verify=verify))
        scores["ours"] = [item["score"] for item in evaluated[0]]
        return count

    def peft() -> int:
        scores["PEFT"] = peft_scores(theirs, task, rows)
        return 1

    say(f"{name}, {len(rows)} items, {count} adapters ", end="")
    arms: dict[str, Any] = {"ours": ours, "ours, every token decoded": lambda: ours(verify=False), "PEFT": peft}
    timings = interleave(arms, plan.times(3), warmup=0 if name == "smollm2" else 1)
    case = f"{name} {task.name}, {len(rows)} items, K={count}"
    alike = [a == b for a, b in zip(scores["ours"], scores["PEFT"], strict=True)]
    return [
        timings.row(case, "PEFT one by one / ours together", "PEFT", "ours"),
        timings.row(case, "PEFT one by one / ours, every token decoded", "PEFT", "ours, every token decoded"),
        single(case, "share of items scored alike", "", sum(alike) / len(alike)),
        single(case, "score", "", sum(scores["ours"]) / len(alike)),
        *timings.times(case),
    ]


def _trained(loaded: Loaded, task: Any, steps: int) -> Any:
    """Return adapters after a few steps on the task, so that answers resemble those that studies evaluate."""
    adapters = attach(loaded.model, "lora", rank=8)
    plan = TrainPlan(steps=steps, batch_size=8, progress=False)
    say(f"{loaded.name}: training an adapter for {steps} steps")
    train(loaded, [Run(adapters=adapters, data=modality_of(loaded).encode(task, "train"), lr=1e-3)], plan)
    return adapters


def peft_scores(loaded: Loaded, task: Any, rows: list[Encoded]) -> list[int]:
    """Return the score of every item by transformers' `generate`, prompts padded on the left."""
    tokenizer, ends = loaded.tokenizer, sorted(end_tokens(loaded))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    scores = [0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        width = max(len(rows[index].ids) for index in part)
        ids = torch.tensor([[pad] * (width - len(rows[i].ids)) + rows[i].ids for i in part])
        mask = torch.tensor([[0] * (width - len(rows[i].ids)) + [1] * len(rows[i].ids) for i in part])
        with torch.inference_mode():
            output = loaded.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=task.max_new_tokens, do_sample=False,
                pad_token_id=pad, eos_token_id=ends,
            )  # fmt: skip
        for index, tokens in zip(part, output[:, width:], strict=True):
            text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            scores[index] = task.score(rows[index].example, text)["score"]
    return scores
