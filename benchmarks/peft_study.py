"""A study scripted on PEFT and transformers, with which `time_to_table` compares lorax. Lorax trains nothing here.

    python -m benchmarks.peft_study STUDY.json

It is the script that a careful user would write: the model is loaded once and copied for every run, batches are
padded to their longest row, AdamW has clipping and a cosine schedule, greedy evaluation is sorted by length, and at the
end a table is printed. Lorax's functions load the model and the task and score answers: both sides see the same data.
"""

from __future__ import annotations

import copy
import json
import math
import random
import statistics
import sys
import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn


def main(path: str) -> None:
    """Run every cell of the study and print its table."""
    from lorax import tasks
    from lorax.models import registry

    with open(path) as file:
        study = json.load(file)
    task = tasks.load(study["task"], 0)
    labels = list(task.labels) if task.kind == "classification" else None
    half = study.get("dtype") == "bf16-autocast"
    loaded = registry.load(study["model"], labels=labels, device=study.get("device", "cpu"))
    data = {split: encoded(task, loaded.tokenizer, split) for split in ("train", "test")}
    cells, start = defaultdict(list), time.perf_counter()
    for run in study["runs"]:
        torch.manual_seed(run["seed"])
        batches = order(data["train"], study["batch_size"], study["steps"], run["seed"])
        model = adapted(copy.deepcopy(loaded.model), loaded, run, batches)
        with torch.autocast(loaded.model.device.type, dtype=torch.bfloat16, enabled=half):
            train(model, loaded, batches, run["lr"], study["task"].get("head_lr"))
            cells[run["init"], run["lr"]].append(score(model.eval(), loaded, task, data["test"]))
    print("| init | lr | score | sd | seeds |\n|---|---|---|---|---|")
    for (init, lr), scores in sorted(cells.items()):
        sd = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        print(f"| {init} | {lr:g} | {statistics.mean(scores):.3f} | {sd:.3f} | {len(scores)} |")
    print(f"\n{len(study['runs'])} runs took {time.perf_counter() - start:.2f} s")


def encoded(task: Any, tokenizer: Any, split: str) -> list[tuple[list[int], list[int], Any]]:
    """Return (prompt ids, label ids, example) of a split."""
    rows = []
    for example in getattr(task, split):
        if task.kind == "classification":
            rows.append((tokenizer(example.prompt)["input_ids"], [example.label], example))
            continue
        turns = [{"role": "system", "content": task.system}] if task.system else []
        turns.append({"role": "user", "content": example.prompt})
        start = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(start, add_special_tokens=False)["input_ids"]
        answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        rows.append((ids, [*answer, tokenizer.eos_token_id], example))
    return rows


def order(rows: list[Any], size: int, steps: int, seed: int) -> list[list[Any]]:
    """Return shuffled batches."""
    draw, stream = random.Random(seed), []
    while len(stream) < size * steps:
        stream += draw.sample(rows, len(rows))
    return [stream[step * size : (step + 1) * size] for step in range(steps)]


def collate(rows: list[Any], loaded: Any) -> dict[str, torch.Tensor]:
    """Pad a batch on the right; the loss is on the answer."""
    classes = loaded.kind == "classification"
    whole = [ids if classes else ids + labels for ids, labels, _ in rows]
    width = max(map(len, whole))
    batch = {
        "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids in whole]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in whole]),
    }
    if classes:
        return on_device(batch | {"labels": torch.tensor([labels[0] for _, labels, _ in rows])}, loaded)
    masked = [[-100] * len(ids) + labels + [-100] * (width - len(ids) - len(labels)) for ids, labels, _ in rows]
    return on_device(batch | {"labels": torch.tensor(masked)}, loaded) | {"use_cache": False}


def on_device(batch: dict[str, torch.Tensor], loaded: Any) -> dict[str, Any]:
    """Put a batch where the model is."""
    return {key: value.to(loaded.model.device) for key, value in batch.items()}


def adapted(model: nn.Module, loaded: Any, run: dict[str, Any], batches: list[list[Any]]) -> nn.Module:
    """Attach PEFT's LoRA with the run's initialisation."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga

    heads = [*loaded.head, "lm_head"]
    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in heads]
    kinds = {"lora": {}, "pissa": {"init_lora_weights": "pissa"}}
    kinds["lora_ga"] = {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}
    saved = {"modules_to_save": list(loaded.head)} if loaded.head else {}
    config = LoraConfig(r=run["rank"], lora_alpha=16, target_modules=targets, **saved, **kinds[run["init"]])
    if run["init"] == "lora_ga":

        def backward() -> None:
            for rows in batches[:8]:
                model(**collate(rows, loaded)).loss.backward()

        preprocess_loraga(model, config, backward)
    return get_peft_model(model, config)


def train(model: nn.Module, loaded: Any, batches: list[list[Any]], lr: float, head_lr: float | None) -> None:
    """Train by AdamW: clipping at 1, warm-up over a tenth of the steps, then a cosine; no dropout in the base."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained, head = list(named.values()), [named[name] for name in named if "modules_to_save" in name]
    adapters = [named[name] for name in named if "modules_to_save" not in name]
    groups = [{"params": adapters}, {"params": head, "lr": head_lr or lr}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, weight_decay=0.0)
    warm, steps = max(1, len(batches) // 10), len(batches)

    def factor(step: int) -> float:
        rising = (step + 1) / warm
        return rising if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.eval()
    for rows in batches:
        loss = model(**collate(rows, loaded)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@torch.inference_mode()
def score(model: nn.Module, loaded: Any, task: Any, rows: list[Any], size: int = 32) -> float:
    """Return the mean score of the test split."""
    total, tokenizer = 0, loaded.tokenizer
    rows = sorted(rows, key=lambda row: -len(row[0]))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        if loaded.kind == "classification":
            batch = collate(part, loaded)
            answers = [task.labels[k] for k in model(**batch).logits.argmax(-1).tolist()]
        else:
            answers = generated(model, tokenizer, task, [ids for ids, _, _ in part])
        total += sum(task.score(example, text)["score"] for (_, _, example), text in zip(part, answers, strict=True))
    return total / len(rows)


def generated(model: nn.Module, tokenizer: Any, task: Any, prompts: list[list[int]]) -> list[str]:
    """Return greedy completions, prompts padded on the left."""
    width, pad = max(map(len, prompts)), tokenizer.eos_token_id
    output = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=model.device),
        attention_mask=torch.tensor(
            [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device
        ),
        max_new_tokens=task.max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
    )
    return [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in output[:, width:]]


if __name__ == "__main__":
    main(sys.argv[1])
