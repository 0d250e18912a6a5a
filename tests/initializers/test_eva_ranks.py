"""EVA's ranks by explained variance: whose directions are kept, how many, and PEFT's ranks."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

import lorax
from lorax.adapters.install import install
from lorax.api.factors import NO_RANK, make_factors
from lorax.errors import UserError
from lorax.initializers.registry import build, consumed

R, N = 3, 16


def net():
    torch.manual_seed(0)
    layers = [nn.Linear(N, N, bias=False) for _ in range(4)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2], nn.Tanh(), layers[3]).double()


def inputs(rows=150):
    """Rows come with their opposites, so that every layer of `net` has inputs of mean 0."""
    g = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(rows, N, generator=g, dtype=torch.float64) * torch.logspace(0, -1.2, N, dtype=torch.float64)
    return torch.cat([x, -x])


def passed(model, x):
    return model(x).square().sum()


def attached(x, rho=2.0, rank=R, model=None, **fields):
    return lorax.attach(model or net(), "eva", rank=rank, rho=rho, loss=passed, batches=[x], **fields)


def shares_of(x):
    """{layer: eigenvalues of its inputs' second moment, as shares of their sum}."""
    model, found = net(), {}
    for place in (0, 2, 4, 6):
        S = torch.linalg.svdvals(model[:place](x).detach()).square()
        found[str(place)] = S / S.sum()
    return found


def test_the_directions_with_the_largest_shares_are_kept_and_the_sum_of_ranks_is_exact():
    x = inputs()
    adapters = attached(x)
    ranks = {name: factors.A.shape[0] for name, factors in adapters.factors().items()}
    assert sum(ranks.values()) == 4 * R and len(set(ranks.values())) > 1
    assert adapters.count_trainable() == 4 * R * 2 * N
    shares = shares_of(x)
    bound = torch.cat([of[: 2 * R] for of in shares.values()]).sort(descending=True).values[4 * R - 1]
    assert ranks == {name: int((of[: 2 * R] >= bound).sum()) for name, of in shares.items()}
    for name, factors in adapters.factors().items():
        assert factors.eta == 1 / R and factors.report["rank"] == ranks[name]
        assert factors.report["captured"] == pytest.approx(float(shares[name][: ranks[name]].sum()), rel=1e-9)
    uniform = attached(x, rho=1.0).factors()
    for name, factors in adapters.factors().items():
        common = min(R, ranks[name])
        torch.testing.assert_close(factors.A[:common], uniform[name].A[:common], rtol=0, atol=1e-12)


def test_ranks_and_scales_are_pefts():
    x = inputs()
    eva = peft.EvaConfig(rho=2.0, tau=0.9999)
    names = ["0", "2", "4", "6"]
    config = peft.LoraConfig(r=R, lora_alpha=6, target_modules=names, init_lora_weights="eva", eva_config=eva)
    theirs = peft.get_peft_model(net().float(), config)
    peft.tuners.lora.eva.initialize_lora_eva_weights(
        theirs, [x.float()], forward_fn=lambda model, batch: model(batch), prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip
    for name, ours in attached(x, alpha=6.0).factors().items():
        layer = theirs.base_model.model[int(name)]
        A = layer.lora_A["default"].weight.double()
        assert A.shape == ours.A.shape and layer.scaling["default"] == pytest.approx(ours.eta)
        torch.testing.assert_close(A.T @ A, ours.A.T @ ours.A, rtol=0, atol=1e-3)


class Two(nn.Module):
    """One layer is given two directions, each with more than a sixteenth of its inputs; the other one sixteen alike."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.steep, self.flat = (nn.Linear(N, N, bias=False).double() for _ in range(2))

    def forward(self, x, swapped=False):
        two = torch.cat([x[:, :2], x.new_zeros(len(x), N - 2)], 1)
        alike = torch.eye(N).double().repeat(len(x) // N, 1)
        return self.steep(alike) + self.flat(two) if swapped else self.steep(two) + self.flat(alike)


def test_a_layer_without_a_rank_is_not_adapted_and_coverage_says_why(tmp_path):
    x = inputs(152)
    adapters = attached(x, rank=1, model=Two())
    assert adapters.names() == ["steep"] and adapters.factors()["steep"].A.shape[0] == 2
    assert NO_RANK in str(adapters.coverage)
    with torch.no_grad():
        adapters.parameters()[0].add_(0.1)
    y = adapters.model(x)
    adapters.save(tmp_path, quiet=True)
    loaded = lorax.load(adapters.detach(), tmp_path)
    torch.testing.assert_close(loaded.model(x), y)


def test_lanes_of_a_pack_may_have_other_layers():
    x, model, method = inputs(152), Two(), build("eva", own={"rank": 1, "rho": 2.0})
    plans = [
        make_factors(model, method, loss=lambda m, b, s=swapped: m(b, s).square().sum(), batches=[x])
        for swapped in (False, True)
    ]
    lanes = install(model, plans, "carry", [0.0, 0.0], [{}, {}])
    assert [lane.names() for lane in lanes] == [["steep"], ["flat"]]
    with torch.no_grad():
        for lane in lanes:
            for value in lane.parameters():
                value.add_(0.1)
    with lanes[0].pack.active([0, 1]):
        both = model(torch.cat([x, x])).split(len(x))
    for lane, packed in zip(lanes, both, strict=True):
        with lane.pack.active([lane.number]):
            torch.testing.assert_close(model(x), packed, rtol=0, atol=1e-12)


def test_equal_shares_go_to_the_earlier_layer():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = (nn.Linear(N, N, bias=False).double() for _ in range(2))

        def forward(self, x):
            return self.q(x) + self.k(x)

    adapters = attached(inputs(), rank=1, model=Same(), rho=3.0)
    assert {name: factors.A.shape[0] for name, factors in adapters.factors().items()} == {"q": 1, "k": 1}
    adapters = attached(inputs(), rank=3, model=Same(), rho=1.34)
    assert sum(factors.A.shape[0] for factors in adapters.factors().values()) == 6


def test_rho_1_leaves_ids_and_factors_as_they_were():
    assert "rho" not in consumed(build("eva")) and consumed(build("eva", own={"rho": 2.0}))["rho"] == 2.0
    assert consumed(build("eva", own={"rho": 1})) == consumed(build("eva"))
    assert "rank" not in attached(inputs(), rho=1.0).factors()["0"].report


@pytest.mark.parametrize(
    "fields,line",
    [
        ({"rho": 0.5}, "rho=0.5: at least 1 is needed"),
        ({"rho": float("nan")}, "rho=nan: a finite number above 0"),
        ({"rank_pattern": {"0": 2}}, "rank_pattern: init=eva sets its layers' ranks itself"),
    ],
)
def test_bad_input_is_one_line(fields, line):
    with pytest.raises(UserError, match=line):
        attached(inputs(), **fields)


def test_inputs_that_span_too_little_in_all_are_refused():
    with pytest.raises(UserError, match="eva rank=3 rho=2: the inputs of 4 layers span 4 directions that count, 12"):
        attached(inputs()[:1])
