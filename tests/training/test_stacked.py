"""Lanes that train in one buffer train as in plain operations with torch's AdamW, the readable twin."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from small_training import encode
from torch.utils._python_dispatch import TorchDispatchMode

from lorax.adapters.adapted import reference_mode
from lorax.adapters.install import install
from lorax.adapters.stacking import stacks
from lorax.api import attach, make_factors
from lorax.initializers.registry import build
from lorax.training import pack_update
from lorax.training.checkpoint import load_checkpoint, save_checkpoints
from lorax.training.loop import Run, TrainPlan, train

PLAN = TrainPlan(steps=8, batch_size=4, warmup=0.2)
PACKS = {
    "like": ["lora", "lora", "lora_plus"],
    "recentred": ["lora", "pissa", "milora", "lora_plus"],
    "cores": ["lora_xs", "lora_xs", "svft", "svft", "lora"],
    "ruled": ["adalora", "lora", "dylora", "pissa"],
}


def runs_of(loaded, task, names, ranks=(4, 2, 3), dropout=0.0, **more):
    methods = [
        build(name, shared={"rank": None if name == "svft" else ranks[0] if name == "lora_xs" else rank})
        for name, rank in zip(names, [*ranks] * 3, strict=False)
    ]
    plans = [make_factors(loaded.model, method, seed=seed) for seed, method in enumerate(methods)]
    drops = [dropout * (index % 2) for index in range(len(names))]
    data = encode(task, loaded, "train")
    return [
        Run(
            adapters=handle, data=data[index:], lr=1e-2 / (1 + index), seed=index,
            rates=method.rates, rule=method.rule(), **more,
        )
        for index, (handle, method) in enumerate(zip(install(loaded.model, plans, dropout=drops), methods, strict=True))
    ]  # fmt: skip


@contextmanager
def buffers(seen):
    """Note the kinds of the buffers that are made, with their number of lanes."""
    form = stacks.Stacks.__init__

    def noting(self, *args, **kwargs):
        form(self, *args, **kwargs)
        seen.extend((type(buffer).__name__, len(buffer)) for buffer in self.buffers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks.Stacks, "__init__", noting)
        yield


def both(toy, task, names, plan, seen=None, dtype="float32", **more):
    """The same pack twice: stacked, and in the readable form."""
    found = []
    for readable in (False, True):
        loaded = toy(dtype=dtype)
        runs = runs_of(loaded, task, names, **more)
        made = []
        with reference_mode(readable), buffers(made):
            outcomes = train(loaded, runs, plan)
        assert not (readable and made)
        if seen is not None:
            seen += made
        found.append((runs, outcomes))
    return found


def assert_alike(found, losses=1e-6, values=1e-4):
    (ours, our_ends), (theirs, their_ends) = found
    for run, other, end, expected in zip(ours, theirs, our_ends, their_ends, strict=True):
        assert end.status == expected.status and len(end.curve) == len(expected.curve)
        assert [row["loss"] for row in end.curve] == pytest.approx([row["loss"] for row in expected.curve], rel=losses)
        for name, value in other.adapters.named_parameters().items():
            difference = run.adapters.named_parameters()[name] - value
            assert difference.norm() <= values * value.norm() + 1e-9, name


@pytest.mark.parametrize("pack", PACKS)
def test_a_pack_trains_as_its_readable_twin(toy, sums, pack):
    """Ranks, rates, methods and lengths of lanes differ, with dropout, decay and micro-batches."""
    seen = []
    plan = replace(PLAN, accumulation=2, clip=0.5)
    assert_alike(both(toy, sums, PACKS[pack], plan, seen, dropout=0.2, weight_decay=0.1))
    assert seen == {
        "like": [("StackedFactors", 3)],
        "recentred": [("StackedFactors", 4)],
        "cores": [("StackedCores", 2), ("StackedCores", 2), ("StackedFactors", 1)],
        "ruled": [("StackedFactors", 2)],
    }[pack]
