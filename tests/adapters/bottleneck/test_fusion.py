"""AdapterFusion: its equation, its start, what trains, what it refuses; adapters stay as they were trained."""

from dataclasses import replace

import pytest
import torch
from small_training import encode
from torch import nn

import lorax
from lorax.adapters.bottleneck.bottleneck import Bottleneck
from lorax.adapters.bottleneck.fusion import Fusion, FusionAdapter
from lorax.adapters.install import install
from lorax.errors import UserError
from lorax.initializers.registry import build, consumed
from lorax.training.loop import Run, TrainPlan, train


class _Model(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.ffn, self.norm = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)), nn.LayerNorm(6)
        self.double()

    def forward(self, x):
        return self.norm(x + self.ffn(x))


def x_of(rows=4):
    return torch.randn(rows, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bottleneck(seed, rank=2, reads="output"):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return Bottleneck(randn(rank, 6), randn(6, rank), randn(rank), randn(6), "gelu", 1.3, reads)


PLACES = {"output": "ffn.2", "input": "ffn", "norm": "norm"}


def saved(folder, seed, init="houlsby", target="ffn.2", model=None, rank=2):
    """A trained adapter in a folder; returns the folder."""
    model = _Model() if model is None else model
    adapters = lorax.attach(model, init=init, rank=rank, targets=[target], seed=seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)).to(parameter))
    adapters.save(folder, quiet=True)
    adapters.detach()
    return str(folder)


def by_hand(u, adapter):
    """V-weighted sums one adapter at a time, as the equation stands."""
    z = torch.stack([one.term(u) for one in adapter.adapters])
    scores = torch.stack(
        [((u @ adapter.Q.T + adapter.Q_bias) * (each @ adapter.K.T + adapter.K_bias)).sum(-1) for each in z]
    )
    p = torch.exp(scores) / torch.exp(scores).sum(0)
    return sum(weight[..., None] * (each @ adapter.V.T) for weight, each in zip(p, z, strict=True))


@pytest.mark.parametrize("reads", PLACES)
def test_the_equation(reads):
    model, x, name = _Model(), x_of(), PLACES[reads]
    plan = Fusion.of((bottleneck(1, 2, reads), bottleneck(2, 3, reads)), torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(5)
    shaken = {key: getattr(plan, key) + 0.2 * torch.randn(getattr(plan, key).shape, generator=g, dtype=torch.float64)
              for key in ("Q", "Q_bias", "K", "K_bias", "V")}  # fmt: skip
    adapters = install(model, {name: replace(plan, **shaken)})
    y, adapter = model(x), adapters.layer_adapter(name)
    adapters.detach()
    z, v = model.ffn(x), x + model.ffn(x)
    expected = {
        "output": lambda: model.norm(x + z + by_hand(z, adapter)),
        "input": lambda: model.norm(x + z + by_hand(x, adapter)),
        "norm": lambda: model.norm(v + by_hand(model.norm(v), adapter)),
    }[reads]()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert adapters.number == 0 and plan.count_trainable() == 3 * 36 + 12


def test_the_start():
    """V is 1 and 1e-6, constant; Q, K are N(0, 0.02^2); without Q the adapters' mean, with one adapter that adapter."""
    plan = Fusion.of((bottleneck(1), bottleneck(2)), torch.Generator().manual_seed(0))
    assert torch.equal(plan.V, torch.full((6, 6), 1e-6, dtype=torch.float64).fill_diagonal_(1))
    wide = Fusion.of((replace(bottleneck(1), A=torch.zeros(2, 400), B=torch.zeros(400, 2)),), torch.Generator())
    for value in (wide.Q, wide.K):
        assert abs(float(value.mean())) < 2e-4 and float(value.std()) == pytest.approx(0.02, rel=0.02)
    u = x_of()
    exact = {"Q": 0 * plan.Q, "V": torch.eye(6, dtype=torch.float64)}
    terms = [each.build().term(u) for each in plan.adapters]
    torch.testing.assert_close(FusionAdapter(replace(plan, **exact)).term(u), (terms[0] + terms[1]) / 2)
    alone = Fusion.of((bottleneck(1),), torch.Generator().manual_seed(0))
    torch.testing.assert_close(FusionAdapter(alone).term(u), terms[0], rtol=0, atol=1e-4)  # 1e-6 off the diagonal
    torch.testing.assert_close(FusionAdapter(replace(alone, V=exact["V"])).term(u), terms[0], rtol=0, atol=1e-12)


def test_it_trains_on_saved_adapters_which_stay_as_they_are(tmp_path):
    folders = [saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, rank=3)]
    model, x = _Model(), x_of()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="acts while it trains"):
        adapters = lorax.attach(model, init="fusion", adapters=folders, seed=3)
    assert adapters.names() == ["ffn.2"] and adapters.count_trainable() == build("fusion").count(6, 6) == 3 * 36 + 12
    assert not torch.equal(model(x), _Model()(x)) and not build("fusion").starts_at_base
    frozen = {key: value.clone() for key, value in adapters.state_dict().items() if ".adapters." in key}
    optimiser = torch.optim.Adam(adapters.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        (model(x).square().sum() + adapters.rule.penalty(adapters)).backward()
        optimiser.step()
    assert len(frozen) == 8 and all(torch.equal(adapters.state_dict()[key], value) for key, value in frozen.items())
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    y = model(x)
    adapters.save(tmp_path / "fused", quiet=True)
    for words in ("PEFT has no such type",):
        with pytest.raises(UserError, match=words):
            adapters.export_peft(tmp_path / "peft")
    with pytest.raises(UserError, match="no change of the weight"):
        adapters.merge()
    adapters.detach()
    for folder in folders:  # the file holds all that is needed
        (tmp_path / folder / "adapter.safetensors").unlink()
    again = lorax.load(model, tmp_path / "fused")
    assert torch.equal(model(x), y) and again.count_trainable() == 3 * 36 + 12 and again.rule is not None


def test_the_penalty_is_a_hundredth_of_the_distance_from_the_identity(tmp_path):
    model, rule = _Model(), build("fusion").rule()
    plan = Fusion.of((bottleneck(1),), torch.Generator().manual_seed(0))
    V = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    adapters = install(model, {"ffn.2": replace(plan, V=V), "norm": replace(plan, V=2 * V)})
    wanted = sum(0.01 * ((torch.eye(6) - W) ** 2).sum() for W in (V, 2 * V))
    torch.testing.assert_close(rule.penalty(adapters).detach(), wanted)
    with torch.no_grad():
        rule.finish(adapters)
    assert rule.report() == {"value_distance": pytest.approx(float((torch.eye(6) - 2 * V).norm()))}
    assert build("fusion", own={"penalty": 0}).rule().penalty(adapters) is None


def test_packed_runs_are_single_runs_and_a_stopped_one_goes_on(toy, sums, tmp_path):
    """Fusion beside LoRA in one pack; a run that is stopped goes on to the same bits."""
    folders = [saved(tmp_path / str(k), k, "pfeiffer", "down_proj", toy(dtype="float64").model) for k in (1, 2)]
    methods = [build("fusion", own={"adapters": folders}), build("lora")]
    plan = TrainPlan(steps=3, batch_size=4)

    def run(adapters, loaded, lane, **more):
        data, rule = encode(sums, loaded, "train"), methods[lane].rule()
        return Run(adapters=adapters, data=data, lr=1e-2, seed=lane, rule=rule, **more)

    def alone(lane, plan=plan, **more):
        loaded = toy(dtype="float64")
        adapters = lorax.attach(loaded.model, methods[lane], seed=lane)
        [outcome] = train(loaded, [run(adapters, loaded, lane, **more)], plan)
        return {key: value.detach().clone() for key, value in adapters.state_dict().items()}, outcome

    expected = [alone(0), alone(1)]
    loaded = toy(dtype="float64")
    plans = [lorax.api.make_factors(loaded.model, each, seed=lane) for lane, each in enumerate(methods)]
    packed = install(loaded.model, plans)
    train(loaded, [run(adapters, loaded, lane) for lane, adapters in enumerate(packed)], plan)
    for adapters, (theirs, _) in zip(packed, expected, strict=True):
        for key, value in adapters.state_dict().items():
            assert (value - theirs[key]).norm() <= 1e-10 * (1 + theirs[key].norm()), key

    def killed(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    more = {"plan": replace(plan, checkpoint_every=2), "checkpoint": tmp_path / "c.pt"}
    with pytest.raises(KeyboardInterrupt):
        alone(0, on_step=killed, **more)
    resumed, outcome = alone(0, **more)
    assert outcome.resumed == 2 and outcome.rule_report == expected[0][1].rule_report
    assert outcome.curve == expected[0][1].curve and "penalty" in outcome.curve[0]
    assert all(torch.equal(resumed[key], value) for key, value in expected[0][0].items())


def test_folders_are_no_part_of_the_run_but_what_they_hold_is(tmp_path):
    first, second = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2)
    (tmp_path / "moved").mkdir()
    for file in ("adapter.json", "adapter.safetensors"):
        (tmp_path / "moved" / file).write_bytes((tmp_path / "a" / file).read_bytes())
    one, same, other = (build("fusion", own={"adapters": [each]}) for each in (first, str(tmp_path / "moved"), second))
    assert consumed(one) == consumed(same) != consumed(other) and "adapters" not in consumed(one)
    assert len(consumed(one)["identities"]) == 1


def test_what_cannot_be_fused_is_one_line(tmp_path):
    good = saved(tmp_path / "good", 1)
    lora = lorax.attach(_Model(), init="lora", rank=2, targets=["ffn.2"])
    lora.save(tmp_path / "lora", quiet=True)
    cases = [
        (None, "init=fusion needs trained adapters"),
        ([], "adapters=\\[\\]: a list of folders"),
        (good, "a list of folders of saved adapters is needed"),
        ([str(tmp_path / "none")], "holds no adapter.json"),
        ([str(tmp_path / "lora")], "holds low-rank factors at ffn.2; bottleneck adapters can be fused"),
        ([good, saved(tmp_path / "elsewhere", 2, target="ffn.0")], "stand at different sites, such as ffn"),
        ([good, saved(tmp_path / "beside", 2, "parallel_adapter")], "some read the input, some the output"),
        ([saved(tmp_path / "other", 2, model=_Model(seed=1))], "trained on ffn.2 with digest .*other weights"),
    ]
    for adapters, line in cases:
        with pytest.raises(UserError, match=line) as caught:
            lorax.attach(_Model(), init="fusion", adapters=adapters)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="identities=.'other'.: those of the adapters are"):
        build("fusion", own={"adapters": [good], "identities": ["other"]})
    with pytest.raises(UserError, match="penalty=-1: a finite number"):
        build("fusion", own={"penalty": -1})
    lacking = nn.Sequential(nn.Linear(6, 6))
    with pytest.raises(UserError, match="good stands at ffn.2, which Sequential lacks"):
        lorax.attach(lacking, init="fusion", adapters=[good])
