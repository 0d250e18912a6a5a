"""Lanes that train in one buffer train as in plain operations with torch's AdamW, the readable twin."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from small_training import encode
from torch.utils._python_dispatch import TorchDispatchMode

from lorax.adapters.adapted import reference_mode
from lorax.adapters.install import install
from lorax.adapters.stacking import stacks
from lorax.api import attach, make_factors
from lorax.initializers.registry import build
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
        for name, rank in zip(names, cycle(ranks), strict=False)
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
    assert (
        seen
        == {
            "like": [("StackedFactors", 3)],
            "recentred": [("StackedFactors", 4)],
            "cores": [("StackedCores", 2), ("StackedCores", 2), ("StackedFactors", 1)],
            "ruled": [("StackedFactors", 2)],
        }[pack]
    )


@pytest.mark.parametrize("dtype,autocast", [("float64", None), ("float16", None), ("float32", "bfloat16")])
def test_other_dtypes_train_as_their_twin(toy, sums, dtype, autocast):
    """Gradients in the products' dtype, a loss scale, two micro-batches that are added."""
    plan = replace(PLAN, steps=4, accumulation=2, autocast=autocast)
    tight = dtype == "float64"
    found = both(toy, sums, ["lora", "pissa", "lora_xs", "lora_xs"], plan, dtype=dtype, weight_decay=0.1)
    assert_alike(found, losses=1e-10 if tight else 0.02, values=1e-8 if tight else 0.3)


def test_a_lane_that_diverges_moves_no_bit_of_the_others_and_keeps_its_values(toy, sums):
    """The step in which it happens; after it the pack is smaller, and its products may round differently."""
    ends = {}
    for broken in (False, True):
        loaded = toy()
        runs = runs_of(loaded, sums, ["lora", "pissa", "lora"])
        if broken:
            parameter = next(iter(runs[1].adapters.named_parameters().values()))

            def spoil(row, parameter=parameter):
                if row["step"] == 3:
                    parameter.data[0, 0] = float("nan")

            runs[1].on_step = spoil
        values = {}

        def keep(row, runs=runs, values=values):
            if row["step"] == 4:
                values.update({i: {k: v.clone() for k, v in runs[i].adapters.state_dict().items()} for i in (0, 2)})

        runs[2].on_step = keep
        ends[broken] = (train(loaded, runs, PLAN), values, runs)
    (healthy, expected, _), (outcomes, values, runs) = ends[False], ends[True]
    assert [outcome.status for outcome in outcomes] == ["finished", "diverged", "finished"]
    assert "step 4" in outcomes[1].error and len(outcomes[1].curve) == 5
    for index in (0, 2):
        assert outcomes[index].curve[:5] == healthy[index].curve[:5]
        assert all(torch.equal(values[index][name], value) for name, value in expected[index].items())
        losses = [row["loss"] for row in healthy[index].curve]
        assert [row["loss"] for row in outcomes[index].curve] == pytest.approx(losses, rel=1e-6)
    finite = [value.isfinite().all() for value in runs[1].adapters.parameters()]
    assert finite.count(False) == 1  # what was spoilt; nothing that it would have been updated with


def test_parameters_have_memory_of_their_own_afterwards(toy, sums):
    loaded = toy()
    runs = runs_of(loaded, sums, ["lora", "pissa", "lora_xs", "lora_xs"])
    during = []
    runs[0].on_step = lambda row: during.append(runs[0].adapters.parameters()[0]._base is not None or True)
    train(loaded, runs, replace(PLAN, steps=2))
    for run in runs:
        assert run.adapters.pack.stacks is None
        for parameter in run.adapters.parameters():
            assert parameter.is_contiguous() and parameter.grad is None
            assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


def test_adapters_are_saved_and_scored_in_the_middle_of_training(toy, sums, tmp_path):
    """What a parameter is while it lies in a buffer: the forward, the state and the file are those of its values."""
    loaded = toy()
    runs = runs_of(loaded, sums, ["lora", "pissa"])
    ids = torch.tensor([[1, 2, 3, 4]] * 2)
    found = {}

    def look(row):
        if row["step"] == 2:
            with torch.no_grad():
                found["plain"] = loaded.model(input_ids=ids).logits
                with reference_mode():
                    found["reference"] = loaded.model(input_ids=ids).logits
            found["bytes"] = runs[1].adapters.save(tmp_path / "a")
            found["state"] = {name: value.clone() for name, value in runs[1].adapters.state_dict().items()}

    runs[1].on_step = look
    train(loaded, runs, PLAN)
    assert torch.allclose(found["plain"], found["reference"], atol=1e-5)
    from lorax.api import load

    other = toy()
    read = load(other.model, tmp_path / "a").state_dict()
    assert all(torch.equal(read[name], value) for name, value in found["state"].items())
    assert found["bytes"] < 2 * sum(value.numel() * 4 for value in read.values()) + 20_000


def test_layers_that_no_gradient_reaches_are_left_alone(toy, sums):
    """As by torch's AdamW, which skips them: no decay, no step counted."""
    found = []
    for readable in (False, True):
        loaded = toy()
        layer = loaded.model.get_submodule("model.layers.1.self_attn.v_proj")
        layer.register_forward_hook(lambda module, args, out: out.detach())
        runs = runs_of(loaded, sums, ["lora", "pissa", "lora"], weight_decay=0.5)
        before = [value.clone() for value in runs[0].adapters.parameters()]
        with reference_mode(readable):
            found.append((runs, train(loaded, runs, PLAN)))
        moved = [not torch.equal(value, old) for value, old in zip(runs[0].adapters.parameters(), before, strict=True)]
        names = list(runs[0].adapters.named_parameters())
        still = [name for name, one in zip(names, moved, strict=True) if not one]
        assert still and all("layers.1.self_attn.v_proj" in name for name in still)
    assert_alike(found)


def test_a_layer_that_is_reached_only_sometimes_counts_its_own_steps(toy, sums):
    found = []
    for readable in (False, True):
        loaded, steps = toy(), []
        layer = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
        layer.register_forward_hook(lambda module, args, out, steps=steps: out.detach() if len(steps) == 3 else out)
        runs = runs_of(loaded, sums, ["lora", "pissa"], weight_decay=0.5)
        runs[0].on_step = steps.append
        with reference_mode(readable):
            found.append((runs, train(loaded, runs, PLAN)))
    assert_alike(found)


def test_hooks_on_parameters_are_called(toy, sums):
    loaded = toy()
    runs = runs_of(loaded, sums, ["lora", "lora"])
    seen = Counter()
    first, second = (run.adapters.parameters()[0] for run in runs)
    first.register_post_accumulate_grad_hook(lambda p: seen.update({"after": int(p.grad.any())}))
    second.register_hook(lambda grad: seen.update({"at": 1}) or grad * 0)
    before = second.detach().clone()
    train(loaded, runs, replace(PLAN, steps=3))
    assert seen == {"after": 3, "at": 3} and torch.equal(second, before)


def test_a_lane_of_much_higher_rank_does_not_blow_up_the_buffer(toy, sums):
    seen = []
    loaded = toy()
    runs = runs_of(loaded, sums, ["lora"] * 6, ranks=(1, 16))
    with buffers(seen):
        train(loaded, runs[:1] + runs[1:2], replace(PLAN, steps=1))
    assert seen == [("StackedFactors", 2)]
    runs = runs_of(loaded := toy(), sums, ["lora"] * 7, ranks=(1, 1, 1, 1, 1, 1, 16))
    with buffers(seen):
        train(loaded, runs, replace(PLAN, steps=1))
    assert sorted(seen[1:]) == [("StackedFactors", 2), ("StackedFactors", 5)]


@pytest.mark.parametrize("names", [["lora", "pissa", "lora_plus"], ["lora_xs", "lora_xs", "adalora"]])
def test_a_run_goes_on_alone_and_packed_from_either(toy, sums, names, tmp_path):
    """Checkpoints know nothing of buffers: moments are by name, of a tensor's own size."""
    plan = replace(PLAN, checkpoint_every=3)
    whole_runs = runs_of(loaded := toy(), sums, names)
    whole = train(loaded, whole_runs, PLAN)

    def stop(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    def started(which, paths, stopping):
        loaded = toy()
        runs = runs_of(loaded, sums, names)
        for index in set(range(len(names))) - set(which):
            runs[index].adapters.detach()
        runs = [runs[index] for index in which]
        for run, path in zip(runs, paths, strict=True):
            run.checkpoint = path
        if stopping:
            runs[-1].on_step = stop
            with pytest.raises(KeyboardInterrupt):
                train(loaded, runs, plan)
            return runs, []
        return runs, train(loaded, runs, plan)

    packed = [tmp_path / f"packed{index}" for index in range(len(names))]
    started(range(len(names)), packed, True)
    state = load_checkpoint(packed[0], _fingerprint(packed[0]))
    sizes = {name: tuple(value.shape) for name, value in whole_runs[0].adapters.named_parameters().items()}
    assert {name: tuple(moments["exp_avg"].shape) for name, moments in state["moments"].items()} == sizes
    single = [tmp_path / f"single{index}" for index in range(len(names))]
    for index, path in enumerate(single):
        started([index], [path], True)
    alone = [started([index], [path], False) for index, path in enumerate(packed)]
    together = started(range(len(names)), single, False)
    for index in range(len(names)):
        for runs, outcomes, at in ((*alone[index], 0), (*together, index)):
            assert outcomes[at].resumed == 3
            assert_alike([([runs[at]], [outcomes[at]]), ([whole_runs[index]], [whole[index]])])


def _fingerprint(path):
    """The fingerprint that a checkpoint was written for."""
    import io

    return torch.load(io.BytesIO(path.read_bytes()[:-48]), weights_only=True)["fingerprint"]


def test_a_checkpoint_with_an_optimisers_state_in_its_order_is_read(toy, sums, tmp_path):
    """What version 2 wrote: `torch.optim.AdamW.state_dict()` beside the adapters."""
    path, plan = tmp_path / "a.pt", replace(PLAN, checkpoint_every=3)

    def one(**more):
        loaded = toy()
        adapters = attach(loaded.model, "lora", rank=2)
        return loaded, Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-2, rates={"B": 4.0}, **more)

    def stop(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    loaded, run = one(checkpoint=path, on_step=stop)
    with pytest.raises(KeyboardInterrupt):
        train(loaded, [run], plan)
    state = load_checkpoint(path, _fingerprint(path))
    names = sorted(state["moments"], key=lambda name: name.endswith(".A"))  # by rate, as the optimiser's groups were
    order = [name for name in run.adapters.named_parameters() if name.endswith(".B")]
    order += [name for name in names if name.endswith(".A")]
    fingerprint = state.pop("fingerprint")
    moments = state.pop("moments")
    state = {key: value for key, value in state.items() if key not in ("version", "pack", "moment")}
    state["optimizer"] = {"state": {index: moments[name] for index, name in enumerate(order)}, "param_groups": []}
    save_checkpoints([(path, fingerprint, state)])
    loaded, resumed = one(checkpoint=path)
    [outcome] = train(loaded, [resumed], plan)
    loaded, whole = one()
    [expected] = train(loaded, [whole], PLAN)
    assert outcome.resumed == 3 and outcome.curve == expected.curve
    pairs = zip(resumed.adapters.parameters(), whole.adapters.parameters(), strict=True)
    assert all(torch.equal(value, other) for value, other in pairs)


class Counted(TorchDispatchMode):
    """Counts what is dispatched and makes something: views are left out."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returned = function._schema.returns
        self.made += not any(one.alias_info is not None and not one.alias_info.is_write for one in returned)
        return function(*args, **(kwargs or {}))


def operations(toy, task, names, ranks=(4,)):
    """Operations of one step, over those of a first one."""
    counts = []
    for steps in (1, 3):
        runs = runs_of(loaded := toy(), task, names, ranks)
        with Counted() as counted:
            train(loaded, runs, replace(PLAN, steps=steps, skip_padding=False))
        counts.append(counted.made)
    return (counts[1] - counts[0]) / 2


def test_operations_of_a_step_hardly_grow_with_the_lanes_of_a_buffer(toy, sums):
    one = operations(toy, sums, ["lora"])
    assert operations(toy, sums, ["lora"] * 6) <= one + 40
    assert operations(toy, sums, ["lora"] * 6, ranks=(2, 4, 8)) <= one + 40
    assert operations(toy, sums, ["lora", "pissa", "milora"] * 2) <= one + 60
