"""First steps: closed forms against real optimisers, and against least squares on the Jacobian."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lorax.adapters.adapted import reference_mode
from lorax.adapters.core import Dense, Diagonal, Sparse
from lorax.adapters.factors import Factors
from lorax.adapters.install import install
from lorax.diagnostics.alignment import captured, first_step_alignment
from lorax.diagnostics.angles import Angle, cosine
from lorax.diagnostics.first_step import adam, gradients, reach, sgd, tangent
from lorax.diagnostics.layer_summary import summarise
from lorax.initializers.registry import build, get, names
from lorax.probing.calibration import GivenMatrices
from lorax.probing.probe import Probe

M, N, R = 18, 14, 3


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


G, W = randn(M, N, seed=1), randn(M, N, seed=2)
MOMENT = randn(N, 40, seed=9) @ randn(N, 40, seed=9).mT / 40


def probe():
    layer = nn.Linear(N, M, bias=False, dtype=torch.float64)
    layer.weight.data = W.clone()
    return Probe("0", layer, calibration=GivenMatrices({"0": G}, {"0": MOMENT}))


def made(name, **own):
    return build(name, shared={"rank": R}, own=own)(probe())


def general(M, trainable):
    """Factors with nothing at zero and no orthogonality: every term of the formula counts."""
    return Factors(randn(18, 4, seed=3), M, randn(5, N, seed=4), 0.7, frozenset(trainable))


CORES = {
    "dense": Dense(randn(4, 5, seed=5)),
    "sparse": Sparse(torch.tensor([0, 1, 3, 3]), torch.tensor([4, 1, 0, 2]), randn(4, seed=6), (4, 5)),
}
PLANS = {name: made(name) for name in names() if get(name).has_factors and get(name).adapts == "linear"}
CASES = {name: plan for name, plan in PLANS.items() if isinstance(plan, Factors)}  # others have no closed form
CASES |= {f"{kind} {''.join(trains)}": general(core, trains) for kind, core in CORES.items()
          for trains in ("M", "A", "BM", "ABM")}  # fmt: skip
CASES["svft banded"] = made("svft", pattern="banded")
CASES["adalora"] = Factors(randn(M, 4), Diagonal(randn(4)), randn(4, N, seed=8), 0.5, frozenset("ABM"))


def real_step(factors, optimizer, lr):
    """W' - W0 after one optimiser step on L = <G, W'>, whose gradient is G everywhere."""
    model = nn.Sequential(nn.Linear(N, M, bias=False, dtype=torch.float64))
    model[0].weight.data = W.clone()
    adapters = install(model, {"0": factors})
    start = adapters.layer("0").start() + adapters.layer_adapters()["0"].delta()
    opt = optimizer(adapters.parameters(), lr=lr)
    with reference_mode():
        (model(torch.eye(N, dtype=torch.float64)).mT * G).sum().backward()
    opt.step()
    return (adapters.layer("0").start() + adapters.layer_adapters()["0"].delta() - start).detach()


@pytest.mark.parametrize("factors", CASES.values(), ids=CASES)
def test_closed_forms_are_what_optimisers_do(factors):
    lr = 1e-6
    step = sgd(factors, G)
    assert torch.linalg.norm(real_step(factors, torch.optim.SGD, lr) / lr - step) < 1e-4 * torch.linalg.norm(step)
    ours, real = adam(factors, G, lr=1e-2), real_step(factors, torch.optim.Adam, 1e-2)
    assert torch.allclose(ours, real, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factors", CASES.values(), ids=CASES)
def test_reach_is_the_least_squares_cosine(factors):
    shapes = {name: g.shape for name, g in gradients(factors, G).items()}
    columns = []
    for name, shape in shapes.items():
        for unit in torch.eye(shape.numel(), dtype=torch.float64):
            columns.append(tangent(factors, {name: unit.view(shape)}).flatten())
    J = torch.stack(columns, dim=1)
    best = J @ torch.linalg.lstsq(J, G.flatten()[:, None], driver="gelsd").solution
    assert cosine(sgd(factors, G), -G) <= cosine(best[:, 0], G.flatten()) + 1e-12
    if (known := reach(factors, G)) is not None:
        assert known == pytest.approx(cosine(best[:, 0], G.flatten()), rel=1e-9)


def test_lora_ga_reaches_the_rank_2r_optimum_and_plain_lora_does_not():
    alignment = first_step_alignment(CASES["lora_ga"], G, R)
    S = torch.linalg.svdvals(G)
    assert alignment["optimum_2r"] == pytest.approx(float(S[: 2 * R].norm() / S.norm()), rel=1e-12)
    assert alignment["cosine_first"] == pytest.approx(alignment["optimum_2r"], rel=1e-9)
    assert first_step_alignment(CASES["lora"], G, R)["cosine_first"] < alignment["optimum_r"] < alignment["optimum_2r"]
    assert first_step_alignment(CASES["pissa"], G, R)["cosine_first"] < alignment["optimum_2r"]


def test_full_fine_tuning_is_its_own_gradient():
    alignment = first_step_alignment(None, G, R)
    assert alignment["cosine_first"] == pytest.approx(1) and alignment["reach"] == 1
    assert alignment["cosine_first_adam_full"] == pytest.approx(1)
    mean_over_rms = float(G.abs().mean() / G.square().mean().sqrt())
    assert alignment["cosine_first_adam"] == pytest.approx(mean_over_rms, rel=1e-6)


def test_undefined_is_none():
    zero = torch.zeros_like(G)
    assert captured(zero, R) == [None] and captured(G, 99) == [1]
    assert set(first_step_alignment(CASES["lora"], zero, R).values()) == {None}


def test_summary_over_layers_weighs_by_gradient():
    other = replace(CASES["lora"], A=randn(R, N, seed=11))
    angles: dict[str, Angle] = {}
    rows = [first_step_alignment(CASES["lora"], G, R, angles=angles)]
    rows.append(first_step_alignment(other, 1e-6 * G, R, angles=angles))
    headlines, details = summarise(["h.0.q", "h.1.q"], rows, angles)
    first, second = details["layers"]["cosine_first"]
    assert headlines["cosine_first"] == pytest.approx((first + second) / 2, rel=1e-4)
    assert details["worst"]["cosine_first"] == min(first, second)
    assert details["overall"]["cosine_first"] == pytest.approx(first, rel=1e-4)
    assert details["kinds"]["q"]["captured_r"] == [headlines["captured_r"], details["worst"]["captured_r"]]
