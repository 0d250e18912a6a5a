"""What does it cost to change the adapter of one base, and to mix adapters in one batch?

K LoRAs of rank 8 in PEFT's format are loaded by lorax under names and by PEFT. Switching: `use(name)` against PEFT's
`set_adapter`, and against taking one adapter off and loading the next. Mixed: a batch of one row for each adapter,
whole prompts and one token a row on a cache of keys and values (decoding), by `use(rows=...)`, one adapter after the
other, PEFT's `adapter_names=`, and the base alone. Memory: tensors of the model with K adapters, and of K models.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Plan, Row, interleave, say, single
from benchmarks.subjects import load, sharing_copy
from lorax.api import attach
from lorax.api import load as load_adapter
from lorax.loading.named.collection import NamedAdapters

SHAPES = {"tiny": [(2, 6)], "smollm2": [(4, 32), (16, 32)]}
"""{model: (adapters and rows, tokens of a prompt)}."""
RANK = 8


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    rows: list[Row] = []
    for model in ("tiny",) if plan.quick else ("smollm2",):
        for count, tokens in SHAPES[model]:
            if plan.wants(f"{model} K={count}"):
                rows += _case(model, count, tokens, plan)
    return rows


def _case(name: str, count: int, tokens: int, plan: Plan) -> list[Row]:
    from peft import PeftModel

    loaded = load(name)
    names = [f"task {k}" for k in range(count)]
    case = f"{name} K={count}, rank {RANK}"
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT on adapters that are loaded again
        folders = {key: Path(root) / key for key in names}
        _write(sharing_copy(loaded).model, folders)
        ours, theirs = sharing_copy(loaded, "sdpa").model, sharing_copy(loaded, "sdpa").model
        one, base = sharing_copy(loaded, "sdpa").model, sharing_copy(loaded, "sdpa").model
        for key in names:
            named = load_adapter(ours, folders[key], name=key)
        wrapped = PeftModel.from_pretrained(theirs, folders[names[0]], names[0])
        for key in names[1:]:
            wrapped.load_adapter(folders[key], key)
        wrapped.eval()
        say(f"{case}: switching ", end="")
        times = interleave(_switching(named, wrapped, one, folders), plan.times(7))
        rows = [
            times.row(case, "PEFT set_adapter / ours use", "PEFT set_adapter", "ours use"),
            times.row(case, "ours load / ours use", "ours load", "ours use"),
            times.row(case, "PEFT load_adapter / ours load", "PEFT load_adapter", "ours load"),
            *times.times(case),
            *_memory(case, loaded.model, ours, wrapped, count),
        ]
        for shape, width, prompt in ((f"{count}x{tokens} prompts", tokens, 0), (f"{count}x1 on {tokens}", 1, tokens)):
            arms = _mixed(named, wrapped, base, names, width, prompt)
            apart = float((arms["ours mixed"]() - arms["PEFT adapter_names"]()).abs().max())
            say(f"{case}, {shape} ", end="")
            times = interleave({key: _timed(arm, 8 if prompt else 2) for key, arm in arms.items()}, plan.times(7))
            rows += [
                times.row(f"{case}, {shape}", "PEFT adapter_names / ours mixed", "PEFT adapter_names", "ours mixed"),
                times.row(f"{case}, {shape}", "ours one by one / ours mixed", "ours one by one", "ours mixed"),
                times.row(f"{case}, {shape}", "ours mixed / the base alone", "ours mixed", "base"),
                single(f"{case}, {shape}", "largest difference of a logit from PEFT's", "", apart),
                *times.times(f"{case}, {shape}"),
            ]
    return rows


def _write(model: Any, folders: dict[str, Path]) -> None:
    """Write K random LoRAs in PEFT's format."""
    for seed, folder in enumerate(folders.values()):
        adapters = attach(model, rank=RANK, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        adapters.export_peft(folder, verify=False)
        adapters.detach()


def _switching(named: NamedAdapters, wrapped: Any, one: nn.Module, folders: dict[str, Path]) -> dict[str, Any]:
    """Return the arms that change the adapter; each changes it to all others once and counts them."""
    names = list(folders)

    def use() -> int:
        for name in names:
            named.use(name)
        return len(names)

    def set_adapter() -> int:
        for name in names:
            wrapped.set_adapter(name)
        return len(names)

    def reload() -> int:
        for name in names[:2]:
            load_adapter(one, folders[name]).detach()
        return 2

    def peft_reload() -> int:
        for name in names[:2]:
            wrapped.set_adapter(names[-1])
            wrapped.delete_adapter(name)
            wrapped.load_adapter(folders[name], name)
        wrapped.eval()
        return 2

    return {"ours use": use, "PEFT set_adapter": set_adapter, "ours load": reload, "PEFT load_adapter": peft_reload}


def _mixed(
    named: NamedAdapters, wrapped: Any, base: Any, names: list[str], width: int, prompt: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the arms that compute a batch of one row for each adapter.

    Args:
        named: ours.
        wrapped: PEFT's.
        base: the model without adapters.
        names: of the adapters, one a row.
        width: tokens of a row.
        prompt: tokens before them whose keys and values are there already.
    """
    count = len(names)
    top = min(base.get_input_embeddings().num_embeddings, 20000)
    ids = torch.randint(10, top, (count, prompt + width), generator=torch.Generator().manual_seed(0))
    new = ids[:, prompt:]

    def step(model: Any, rows: torch.Tensor, past: Any, **more: Any) -> torch.Tensor:
        logits = model(input_ids=rows, past_key_values=past, use_cache=past is not None, **more).logits
        if past is not None:
            past.crop(-width)
        return logits

    def before(model: Any, rows: torch.Tensor, **more: Any) -> Any:
        return model(input_ids=rows[:, :prompt], use_cache=True, **more).past_key_values if prompt else None

    with torch.inference_mode():
        with named.use(rows=names):
            past = before(named.model, ids)
        pasts = []
        for row, name in enumerate(names):
            named.use(name)
            pasts.append(before(named.model, ids[row : row + 1]))
        peft_past, base_past = before(wrapped, ids, adapter_names=names), before(base, ids)
    named.use(rows=names)

    def one_by_one() -> torch.Tensor:
        rows = []
        for row, name in enumerate(names):
            named.use(name)
            rows.append(step(named.model, new[row : row + 1], pasts[row]))
        return torch.cat(rows)

    def mixed() -> torch.Tensor:
        if named.active is not None:
            named.use(rows=names)
        return step(named.model, new, past)

    return {
        "ours mixed": torch.inference_mode()(mixed),
        "ours one by one": torch.inference_mode()(one_by_one),
        "PEFT adapter_names": torch.inference_mode()(lambda: step(wrapped, new, peft_past, adapter_names=names)),
        "base": torch.inference_mode()(lambda: step(base, new, base_past)),
    }


def _timed(arm: Callable[[], torch.Tensor], steps: int) -> Callable[[], int]:
    def call() -> int:
        for _ in range(steps):
            arm()
        return steps

    return call


def _memory(case: str, base: nn.Module, ours: nn.Module, wrapped: nn.Module, count: int) -> list[Row]:
    """Return megabytes of tensors: K adapters on one base, ours and PEFT's, and K + 1 models of their own."""
    alone, both, theirs = (_bytes(model) for model in (base, ours, wrapped))
    return [
        single(case, f"{count} adapters on one base, ours", "MB", both / 1e6),
        single(case, f"{count} adapters on one base, PEFT", "MB", theirs / 1e6),
        single(case, f"{count} merged models", "MB", count * alone / 1e6),
    ]


def _bytes(model: nn.Module) -> int:
    tensors: Iterable[torch.Tensor] = [*model.parameters(), *model.buffers()]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
