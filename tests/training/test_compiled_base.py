"""train.compile=inductor: the base is compiled around the adapted layers; losses are those of eager steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_training import encode

from lorax.adapters.install import install
from lorax.adapters.linear import AdaptedLinear
from lorax.api import make_factors
from lorax.forward.blocks import compiled
from lorax.forward.recorders import CudaGraphs, Rerun
from lorax.initializers.registry import build
from lorax.training import compiling
from lorax.training.compiling import choose
from lorax.training.loop import Run, TrainPlan, train
from lorax.training.state import RunState

PLAN = TrainPlan(steps=6, batch_size=2, warmup=0.2, compile="inductor")
METHODS = ["lora", "pissa", "svft"]


def pack(loaded, task, methods=METHODS):
    data = encode(task, loaded, "train")
    made = [build(name, shared={"rank": None if name == "svft" else 2 + k}) for k, name in enumerate(methods)]
    plans = [make_factors(loaded.model, one, seed=k) for k, one in enumerate(made)]
    handles = install(loaded.model, plans, dropout=[0.0, 0.2, 0.0][: len(made)])
    return [Run(adapters=handle, data=data[k:], lr=1e-2, seed=k) for k, handle in enumerate(handles)]


def losses(toy, task, plan, methods=METHODS, dtype="float32"):
    loaded = toy(dtype=dtype)
    outcomes = train(loaded, pack(loaded, task, methods), plan)
    assert all(module._compiled_call_impl is None for module in loaded.model.modules())
    return [[row["loss"] for row in one.curve] for one in outcomes], {one.compiled for one in outcomes}


@pytest.fixture
def aot(monkeypatch):
    """The compiler without the C++ compiler behind it: traced, differentiated ahead, run as torch's own operations."""
    torch.compiler.reset()
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield torch._dynamo.utils.counters
    torch.compiler.reset()


@pytest.mark.slow
def test_the_base_is_compiled_and_the_lanes_stay_in_their_buffers(toy, sums, aot, monkeypatch):
    fused, form = [], AdaptedLinear._fused

    def counting(self, grouping, x):
        fused.append(len(grouping.held))
        return form(self, grouping, x)

    monkeypatch.setattr(AdaptedLinear, "_fused", counting)
    plain, how = losses(toy, sums, replace(PLAN, compile="eager"))
    assert how == {"eager"}
    before = AdaptedLinear.forward
    fused.clear()
    ours, how = losses(toy, sums, PLAN)
    assert how == {"inductor"} and AdaptedLinear.forward is before
    assert ours == [pytest.approx(other, rel=1e-5) for other in plain]
    assert aot["stats"]["unique_graphs"] > 0 and aot["frames"]["ok"] == aot["frames"]["total"]
    assert fused and all(fused)  # every call of an adapted layer was fused, its lanes in a buffer


@pytest.mark.slow
def test_inductor_itself(toy, sums):
    """Through g++."""
    torch.compiler.reset()
    plain, _ = losses(toy, sums, replace(PLAN, compile="eager", steps=3), ["lora"])
    ours, how = losses(toy, sums, replace(PLAN, steps=3), ["lora"])
    assert how == {"inductor"} and ours == [pytest.approx(other, rel=1e-4) for other in plain]


def broken(graph, inputs):
    raise RuntimeError("no such instruction: vfoo\nand a long listing")


def test_no_compiler_is_said_in_one_line_and_steps_run_without(toy, sums, aot, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", broken)
    plain, _ = losses(toy, sums, replace(PLAN, compile="eager", steps=2), ["lora"])
    with pytest.warns(UserWarning, match=r"train.compile=inductor: .*no such instruction.*; steps run eager") as seen:
        ours, how = losses(toy, sums, replace(PLAN, steps=2), ["lora"])
    assert how == {"eager"} and ours == plain
    assert all("\n" not in str(one.message) and len(str(one.message)) < 300 for one in seen)


def test_a_layer_that_does_not_compile_runs_as_it_is(toy, sums, aot, monkeypatch):
    """What the trial compiles works, the model's layers do not: found in the middle of a step, which is taken again."""
    monkeypatch.setattr(compiling, "why_not", lambda device: None)
    monkeypatch.setattr(compiled, "BACKEND", broken)
    plan = replace(PLAN, steps=4, batch_size=4, accumulation=2)
    with pytest.warns(UserWarning, match=r"the base could not be compiled \(.*\); it runs as it is"):
        ours, how = losses(toy, sums, plan)
    plain, _ = losses(toy, sums, replace(plan, compile="eager"))
    assert how == {"graph"} and ours == [pytest.approx(other, rel=1e-5) for other in plain]


def test_inductor_records_on_a_gpu_and_compiles_alone_on_a_cpu(toy, sums, monkeypatch):
    loaded = toy()
    state = RunState(pack(loaded, sums, ["lora"])[0], PLAN, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(compiling, "why_not", lambda device: None)
    here, there = (choose("inductor", [state], loaded.model, torch.device(name)) for name in ("cpu", "cuda"))
    assert here.name == there.name == "inductor" and isinstance(here.recorder, Rerun)
    assert isinstance(there.recorder, CudaGraphs)
    monkeypatch.setattr(compiling, "why_not", lambda device: "Cannot find a working triton")
    with pytest.warns(UserWarning, match="inductor: Cannot find a working triton; steps run as graph"):
        assert choose("inductor", [state], loaded.model, torch.device("cuda")).name == "graph"
