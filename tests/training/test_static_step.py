"""Recorded steps: batches in few shapes and fixed buffers give what eager steps give, for every method and its rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_training import encode
from tape import Tapes

from lorax.adapters.face import TrainingRule
from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.forward import sizes
from lorax.forward.heads import install_heads
from lorax.forward.modality import modality_of
from lorax.forward.recorders import Rerun
from lorax.forward.sizes import Size, few_sizes, size_for
from lorax.initializers.registry import build, get, names
from lorax.training.compiling import EAGER, choose
from lorax.training.loop import Run, TrainPlan, train
from lorax.training.state import RunState

PLAN = TrainPlan(steps=20, batch_size=4, warmup=0.2)
METHODS = [name for name in names() if get(name).has_factors and get(name).adapts == "linear"]


def pack(loaded, task, methods, dropout=0.1, **more):
    """One run of each method, with seeds, data, rates and dropouts of their own."""
    data = encode(task, loaded, "train")
    made = [build(name, shared={"rank": 2}, own={}) for name in methods]
    plans = [make_factors(loaded.model, one, batches=calibration(loaded, data), seed=k) for k, one in enumerate(made)]
    handles = install(loaded.model, plans, dropout=[dropout * (k % 3) for k in range(len(made))])
    heads = install_heads(loaded, range(len(made)))
    return [
        Run(adapters=handle, data=data[k:], lr=1e-2 / (k + 1), seed=k, rates=one.rates, rule=one.rule(),
            head=heads[k] if heads else None, **more)
        for k, (handle, one) in enumerate(zip(handles, made, strict=True))
    ]  # fmt: skip


def calibration(loaded, data):
    batch = modality_of(loaded).collate(data[:4], share=False)
    classes = torch.tensor([row.labels[0] for row in data[:4]])
    return [dict(batch.inputs) | {"labels": classes if loaded.kind == "classification" else batch.inputs["input_ids"]}]


def trained(toy, task, methods, recorder=None, plan=PLAN, dtype="float64", change=lambda runs: None, **more):
    """Outcomes, and each run's tensors at the end."""
    loaded = toy(labels=task.labels, dtype=dtype)
    runs = pack(loaded, task, methods, **more)
    change(runs)
    outcomes = train(loaded, runs, plan, recorder)
    heads = [run.head.state_dict() if run.head is not None else {} for run in runs]
    return outcomes, [{**run.adapters.state_dict(), **head} for run, head in zip(runs, heads, strict=True)]


def assert_same(ours, theirs, tolerance=0.0):
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine.status == other.status and len(mine.curve) == len(other.curve)
        assert mine.rule_report == other.rule_report
        for a, b in zip(mine.curve, other.curve, strict=True):
            assert a == (b if tolerance == 0 else pytest.approx(b, rel=tolerance))
    for mine, other in zip(ours[1], theirs[1], strict=True):
        for name, value in other.items():
            assert (mine[name] - value).norm() <= tolerance * (1 + value.norm()), name


@pytest.fixture
def many_widths(monkeypatch):
    """Shapes that are not rounded, so that small data need several."""
    monkeypatch.setattr(sizes, "STEP", 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:a step could not")
def test_all_methods_in_one_pack_replayed_are_all_methods_run(toy, sums):
    """Beside methods that are computed in plain operations no lane lies in a buffer: passes are recorded alone."""
    tapes, plan = Tapes(), replace(PLAN, steps=6)
    replayed = trained(toy, sums, METHODS, tapes, plan, dtype="float32")
    assert_same(replayed, trained(toy, sums, METHODS, Rerun(), plan, dtype="float32"))
    assert tapes.replays == plan.steps - len(tapes.tapes)
    assert {one.compiled for one in replayed[0]} == {"graph"}


@pytest.mark.slow
@pytest.mark.filterwarnings("error:a step could not")
@pytest.mark.parametrize("methods", [[name] for name in METHODS] + [METHODS], ids=lambda methods: "+".join(methods))
def test_shapes_come_and_go_without_a_change(toy, sums, many_widths, methods):
    plan = replace(PLAN, batch_size=2)
    tapes = Tapes()
    replayed = trained(toy, sums, methods, tapes, plan, dropout=0.2)
    least = 2 if len(methods) == 1 else 1  # of many lanes one always has the longest row
    assert least <= len(tapes.tapes) <= sizes.MOST + 1  # of the update too, where lanes lie in a buffer
    assert -(tapes.replays + len(tapes.tapes)) % plan.steps < sizes.MOST  # but for shapes that came once
    assert_same(replayed, trained(toy, sums, methods, Rerun(), plan, dropout=0.2))
    assert_same(replayed, trained(toy, sums, methods, None, plan, dropout=0.2), 1e-8)


@pytest.mark.parametrize("kind", ["sums", pytest.param("parity", marks=pytest.mark.slow)])
def test_filled_batches_say_what_eager_ones_say(toy, many_widths, request, kind):
    """Padded tokens, padded labels, micro-batches of unlike lanes; a classifier with heads of its own."""
    task, plan = request.getfixturevalue(kind), replace(PLAN, steps=6, accumulation=2)
    tapes, methods = Tapes(), ["lora", "pissa", "svft"]
    replayed = trained(toy, task, methods, tapes, plan)
    assert tapes.replays
    assert_same(replayed, trained(toy, task, methods, None, plan), 1e-8)


def test_gradients_of_coarser_products_are_gathered_in_every_pass(toy, sums, many_widths):
    """Under autocast they add up in buffers of their own: any shape may come first or second in a step."""
    plan, tapes = replace(PLAN, steps=8, accumulation=2, autocast="bfloat16"), Tapes()
    replayed = trained(toy, sums, ["lora", "pissa"], tapes, plan, "float32", dropout=0.0)
    assert len(tapes.tapes) > 1
    assert_same(replayed, trained(toy, sums, ["lora", "pissa"], Rerun(), plan, "float32", dropout=0.0))
    eager = trained(toy, sums, ["lora", "pissa"], None, plan, "float32", dropout=0.0)
    for mine, other in zip(replayed[0], eager[0], strict=True):
        assert [row["loss"] for row in mine.curve] == pytest.approx([row["loss"] for row in other.curve], rel=5e-2)


def test_a_lane_that_ends_leaves_the_others_alone_and_nothing_is_recorded_anew(toy, sums):
    def wild(runs):
        runs[1].plan = replace(PLAN, steps=12, clip=None)
        runs[1].lr = 1e30

    plan, methods = replace(PLAN, steps=12), ["lora", "pissa", "lora"]
    tapes, fewer = Tapes(), Tapes()
    healthy = trained(toy, sums, methods, tapes, plan)
    outcomes, values = trained(toy, sums, methods, fewer, plan, change=wild)
    assert [one.status for one in outcomes] == ["finished", "diverged", "finished"] and len(outcomes[1].curve) < 4
    assert len(fewer.tapes) == len(tapes.tapes) and fewer.replays == tapes.replays
    for k in (0, 2):
        assert outcomes[k].curve == healthy[0][k].curve
        assert all(torch.equal(value, healthy[1][k][name]) for name, value in values[k].items())


def test_a_run_that_is_shorter_ends_alone(toy, sums):
    def short(runs):
        runs[0].plan = replace(PLAN, steps=4)

    tapes, plan = Tapes(), replace(PLAN, steps=8)
    ours = trained(toy, sums, ["lora", "lora"], tapes, plan, change=short)
    assert [len(one.curve) for one in ours[0]] == [4, 8]
    assert_same(ours, trained(toy, sums, ["lora", "lora"], None, plan, change=short), 1e-8)


def test_a_run_goes_on_from_a_checkpoint_of_the_other_mode(toy, sums, tmp_path):
    plan = replace(PLAN, steps=8, checkpoint_every=3)

    def killed(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    def where(runs):
        runs[0].checkpoint = tmp_path / "c.pt"

    def dying(runs):
        where(runs)
        runs[0].on_step = killed

    whole = trained(toy, sums, ["lora_plus"], None, replace(plan, checkpoint_every=0))
    with pytest.raises(KeyboardInterrupt):
        trained(toy, sums, ["lora_plus"], Tapes(), plan, change=dying)
    resumed = trained(toy, sums, ["lora_plus"], None, replace(plan, compile="eager"), change=where)
    assert resumed[0][0].resumed == 3
    assert_same(resumed, whole, 1e-8)


def test_what_cannot_be_recorded_runs_eager_and_is_said(toy, sums):
    """A layer that reads a number back: recording fails, the step is taken all the same."""

    def reading(runs):
        runs[0].adapters.model.model.layers[0].register_forward_hook(
            lambda module, args, out: float(out.sum()) and None
        )

    plan = replace(PLAN, steps=5)
    with pytest.warns(UserWarning, match=r"a step could not be recorded \(.*local_scalar.*\); steps run eager"):
        ours = trained(toy, sums, ["lora"], Tapes(), plan, change=reading)
    assert_same(ours, trained(toy, sums, ["lora"], Rerun(), plan))
    assert ours[0][0].compiled == "eager"


class _Replacing(TrainingRule):
    in_place = False


def test_graphs_without_a_gpu_are_refused_in_one_line(toy, sums):
    plan = replace(PLAN, steps=2, compile="graph")
    with pytest.warns(UserWarning, match="train.compile=graph: a CUDA graph needs a GPU, this is cpu; steps run eager"):
        outcomes, _ = trained(toy, sums, ["lora"], None, plan)
    assert outcomes[0].compiled == "eager" and len(outcomes[0].curve) == 2


def test_auto_looks_at_the_device_and_at_the_steps_to_go(toy, sums, recwarn):
    loaded, cuda = toy(), torch.device("cuda")
    run = pack(loaded, sums, ["lora"])[0]
    few, many = (RunState(run, replace(PLAN, steps=steps), torch.device("cpu")) for steps in (20, 400))
    assert choose("auto", [many], loaded.model, torch.device("cpu")) == EAGER
    assert choose("auto", [few], loaded.model, cuda) == EAGER == choose("eager", [many], loaded.model, cuda)
    assert not recwarn
    run.rule = _Replacing()
    with pytest.warns(
        UserWarning, match="auto: _Replacing acts otherwise than by writing to tensors in place; steps run"
    ):
        assert choose("auto", [few, many], loaded.model, cuda) == EAGER
    run.rule = None
    loaded.model.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="graph: gradient checkpointing puts random states back"):
        assert choose("graph", [few], loaded.model, cuda) == EAGER


def test_few_sizes_compute_the_fewest_tokens():
    needed = [Size(tokens, labels, labels) for tokens, labels in [(9, 4), (10, 9), (17, 2), (33, 1), (40, 7)] * 3]
    assert few_sizes(needed, None, most=1) == [Size(40, 9, 9)]
    assert few_sizes(needed, None, most=2) == [Size(16, 9, 9), Size(40, 7, 7)]
    assert few_sizes(needed, None, most=9) == [Size(16, 9, 9), Size(24, 2, 2), Size(40, 7, 7)]
    assert [size.tokens for size in few_sizes(needed, 38, most=1)] == [40]  # no narrower than what is there
    assert [size.tokens for size in few_sizes([Size(35, 1, 1)], 38)] == [38]
    found = few_sizes(needed, None, most=2)
    assert size_for(Size(9, 9, 9), found, None) is found[0] and size_for(Size(9, 10, 9), found, None) is found[2]
    assert found[2] == Size(16, 10, 9)
