"""Gated experts: the equation written out, its limits, what trains, packs, resumes, is saved and is refused."""

from dataclasses import replace

import pytest
import torch
from small_training import encode
from torch import nn

import lorax
from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.training.loop import Run, TrainPlan, train

pytestmark = pytest.mark.filterwarnings("ignore:.*acts while it trains")
NAMES = ("hydra_lora", "molora")
M, N, R = 7, 10, 3


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N, M)).double()


def shaken(name, model=None, seed=1, **fields):
    """A layer whose experts and router are anything but their start."""
    model = net() if model is None else model
    adapters = lorax.attach(model, name, rank=R, **fields)
    with torch.no_grad():
        for k, parameter in enumerate(adapters.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + k))
    return model, adapters, adapters.layer_adapter("0")


def by_hand(x, model, adapter, top_k=None, temperature=1.0):
    """The equation, one token and one expert at a time."""
    W, b, B, A = model[0].weight, model[0].bias, adapter.B, adapter.A
    rows = []
    for token in x.reshape(-1, N):
        logits = adapter.router @ token / temperature
        weights = (logits - logits.max()).exp()
        weights = weights / weights.sum()
        if top_k is not None:
            least = weights.sort(descending=True).values[top_k - 1]
            weights = torch.where(weights >= least, weights, 0.0)
            weights = weights / weights.sum()
        y = W @ token + b
        for i in range(len(B)):
            y = y + adapter.eta * weights[i] * (B[i] @ (A[i if len(A) > 1 else 0] @ token))
        rows.append(y)
    return torch.stack(rows).reshape(*x.shape[:-1], M)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [{}, {"top_k": 2}, {"temperature": 0.5, "experts": 3}])
def test_outputs_and_gradients_are_those_of_the_written_out_twin(name, fields):
    model, adapters, adapter = shaken(name, **fields)
    x, G = randn(2, 4, N, seed=9).requires_grad_(), randn(2, 4, M, seed=8)
    used = {key: value for key, value in fields.items() if key != "experts"}
    ours, theirs = model(x), by_hand(x, model, adapter, **used)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves = [x, *adapters.parameters()]
    for mine, other in zip(
        torch.autograd.grad(ours, leaves, G), torch.autograd.grad(theirs, leaves, G), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_router_of_zeros_is_the_mean_of_the_experts(name):
    model, _, adapter = shaken(name)
    with torch.no_grad():
        adapter.router.zero_()
        x = randn(5, N)
        mean = sum(adapter.B[i] @ adapter.A[i % len(adapter.A)] for i in range(4)) / 4
        want = model[0].base(x) + adapter.eta * x @ mean.T
        torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_expert_is_lora_and_all_of_top_k_is_soft(name):
    x = randn(5, N)
    model, adapters, adapter = shaken(name, experts=1)
    y, B, A = model(x), adapter.B[0].detach(), adapter.A[0].detach()
    adapters.detach()
    lora = lorax.attach(model, "lora", rank=R)
    lora.layer_adapter("0").B.data, lora.layer_adapter("0").A.data = B, A
    torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)
    assert torch.equal(shaken(name, top_k=4)[0](x), shaken(name)[0](x))


@pytest.mark.parametrize(
    "name, count", [("hydra_lora", R * N + 4 * R * M + 4 * N), ("molora", 4 * R * (M + N) + 4 * N)]
)
def test_step_0_is_the_base_and_the_count_is_the_formula(name, count):
    model = net()
    x, base = randn(3, N), net()(randn(3, N))
    adapters = lorax.attach(model, name, rank=R)
    assert torch.equal(model(x), base) and adapters.eta() == {"0": 16 / R}
    assert adapters.count_trainable() == build(name, shared={"rank": R}).count(M, N) == count
    bound = adapters.layer_adapter("0").A.abs().max()
    assert 0.9 * N**-0.5 < bound <= N**-0.5  # Kaiming-uniform, as LoRA's


@pytest.mark.parametrize("name", NAMES)
def test_no_merge_no_delta_no_export_each_in_one_line(name, tmp_path):
    model, adapters, _ = shaken(name)
    before = model(randn(2, N))
    for call, line in (
        (adapters.merge, "cannot merge 0: its adapter is no change of the weight"),
        (adapters.delta, "0: its adapter is no change of the weight"),
        (lambda: adapters.export_peft(tmp_path / "peft"), "cannot export 0: its experts are weighted by the input"),
        (lambda: adapters.export_merged(tmp_path / "merged"), "0"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert torch.equal(model(randn(2, N)), before) and list(tmp_path.iterdir()) == []


def test_a_saved_adapter_comes_back(tmp_path):
    model, adapters, _ = shaken("molora", top_k=2, temperature=0.7, balance=0.1)
    adapters.save(tmp_path / "a", quiet=True)
    fresh = net()
    back = lorax.load(fresh, tmp_path / "a")
    assert torch.equal(fresh(randn(4, N)), model(randn(4, N)))
    assert back.rule.weight == 0.1 and back.count_trainable() == adapters.count_trainable()
    with pytest.raises(UserError, match="0") as caught:
        lorax.attach(net(), "from", path=str(tmp_path / "a"))
    assert "\n" not in str(caught.value)


def test_rows_that_are_routed_to_named_adapters_use_their_own_experts(tmp_path):
    x, want = randn(4, 3, N), []
    for k, name in enumerate(NAMES):
        model, adapters, _ = shaken(name, seed=10 * k)
        adapters.save(tmp_path / name, quiet=True)
        want.append(model(x))
    model = net()
    for name in NAMES:
        adapters = lorax.load(model, tmp_path / name, name=name)
    adapters.use(rows=["molora", "hydra_lora", "molora", None])
    y = model(x)
    for row, whose in enumerate((1, 0, 1)):
        torch.testing.assert_close(y[row], want[whose][row], rtol=1e-12, atol=1e-12)
    assert torch.equal(y[3], net()(x)[3])


def test_dropout_draws_a_mask_for_each_expert_and_leaves_the_router_alone():
    model = net()
    [adapters] = install(model, [make_factors(model, build("hydra_lora", shared={"rank": R}))], dropout=[0.5])
    adapter, x = adapters.layer_adapter("0"), randn(6, N)
    with torch.no_grad():
        adapter.router.zero_()
        adapter.A.copy_(torch.eye(R, N)[None])
        adapter.B.copy_(randn(4, M, R))
    adapters.train()
    added = (model(x) - model[0].base(x)) / adapter.eta * 4
    # each expert's part is B_i (mask_i * x)[:R]: solve for the four masked inputs of a token
    masked = torch.linalg.lstsq(adapter.B.transpose(0, 1).flatten(1), added.T).solution
    assert masked.shape == (4 * R, 6)
    seen = []
    adapter.output = lambda x, base, weight, mask: seen.append(mask) or base
    model(x)
    assert seen[0].shape == (4, 6, N) and len({tuple(each.flatten().tolist()) for each in seen[0]}) == 4
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}


BAD = [
    ({"experts": 0}, "experts=0: a positive whole number"),
    ({"experts": 2.5}, "experts=2.5"),
    ({"top_k": 5}, "top_k=5: a whole number from 1 to experts=4"),
    ({"top_k": True}, "top_k=True"),
    ({"top_k": 1}, "top_k=1: its one weight is always 1"),
    ({"temperature": 0.0}, "temperature=0.0: a finite number above 0"),
    ({"balance": -1.0}, "balance=-1.0"),
    ({"balance": float("nan")}, "balance=nan"),
    ({"balence": 1.0}, "did you mean 'balance'"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields, line", BAD)
def test_bad_values_are_one_line(name, fields, line):
    with pytest.raises(UserError, match=line) as caught:
        build(name, own=fields)
    assert "\n" not in str(caught.value)
    build(name, own={"experts": 1, "top_k": 1})


PLAN = TrainPlan(steps=3, batch_size=2, warmup=0.2)
KINDS = [("hydra_lora", {}), ("molora", {"top_k": 2, "balance": 0.3, "experts": 3}), ("lora", {})]


def runs(loaded, task, kinds, **more):
    """One run of each, with seeds, rates and dropouts of their own."""
    made = [build(name, shared={"rank": 2}, own=fields) for name, fields in kinds]
    seeds = [KINDS.index(kind) for kind in kinds]
    plans = [make_factors(loaded.model, one, seed=seed) for seed, one in zip(seeds, made, strict=True)]
    handles = install(loaded.model, plans, dropout=[0.1 * seed for seed in seeds])
    data = encode(task, loaded, "train")
    return [
        Run(adapters=handle, data=data, lr=1e-2 / (seed + 1), seed=seed, rule=one.rule(), **more)
        for handle, one, seed in zip(handles, made, seeds, strict=True)
    ]


@pytest.mark.slow
def test_packed_runs_are_single_runs_with_dropout_and_balance(toy, sums):
    loaded = toy(dtype="float64")
    packed = runs(loaded, sums, KINDS)
    outcomes = train(loaded, packed, PLAN)
    for kind, run, outcome in zip(KINDS, packed, outcomes, strict=True):
        loaded = toy(dtype="float64")
        [alone] = runs(loaded, sums, [kind])
        [single] = train(loaded, [alone], PLAN)
        assert [row.keys() for row in single.curve] == [row.keys() for row in outcome.curve]
        assert ("penalty" in single.curve[0]) == (kind[0] == "molora")
        for mine, other in zip(outcome.curve, single.curve, strict=True):
            assert mine == pytest.approx(other, rel=1e-9)
        for key, value in alone.adapters.state_dict().items():
            torch.testing.assert_close(run.adapters.state_dict()[key], value, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(toy, sums, tmp_path):
    def go(folder, stop=None):
        loaded, file = toy(dtype="float64"), tmp_path / folder
        [run] = runs(loaded, sums, [KINDS[1]], checkpoint=file)

        def cut(row):
            if row["step"] == stop:
                raise KeyboardInterrupt

        [outcome] = train(loaded, [replace(run, on_step=cut)], replace(PLAN, steps=6, checkpoint_every=2))
        return outcome, run.adapters.state_dict()

    whole, state = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", stop=4)
    outcome, resumed = go("cut")
    assert outcome.resumed == 4 and outcome.curve == whole.curve and outcome.rule_report == whole.rule_report
    assert all(torch.equal(resumed[key], value) for key, value in state.items())
