"""LoRA-GA by theory, in float64: identities that no implementation detail may break."""

import math

import pytest
import torch
from oracles import M, N, R, best, close, cosine, factors, first_step, gradient, layer, regression

import lorax
from lorax.errors import UserError
from lorax.initializers.lora_ga import DIRECTIONS


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lora_ga_first_step_is_the_best_rank_2r_step(direction):
    model, (loss, batches) = layer(), regression()
    G = gradient(model, loss, batches)
    given = factors(model, "lora_ga", loss=loss, batches=batches, direction=direction)
    zeta = 16 * math.sqrt(M) / R
    assert given.report["zeta"] == pytest.approx(zeta)
    step = first_step(given, G, 1e-10)
    close(step, -1e-10 * zeta * best(G, 2 * R), 1e-7)
    S = torch.linalg.svdvals(G)
    assert cosine(step, -G) == pytest.approx(float(S[: 2 * R].norm() / S.norm()), abs=1e-9)
    assert given.report["captured"] == pytest.approx(float(S[: 2 * R].norm() / S.norm()) ** 2)
    close(given.B.T @ G @ given.A.T + 1, torch.ones(R, R, dtype=torch.float64), 1e-12)  # disjoint sets


def test_lora_ga_on_the_installed_layer_steps_as_theory_says():
    model, (loss, batches) = layer(), regression()
    G, before = gradient(model, loss, batches), model(batches[0][0])
    adapters = lorax.attach(model, init="lora_ga", rank=R, zeta=1, zeta_rule="absolute", loss=loss, batches=batches)
    assert torch.equal(model(batches[0][0]), before)
    loss(model, batches[0]).backward()
    torch.optim.SGD(adapters.parameters(), lr=1e-6).step()
    close(adapters.delta()["0"].double(), -1e-6 * best(G, 2 * R), 1e-5)


@pytest.mark.parametrize("rule,scale", [("forward", M**0.5 / R), ("backward", N**0.5 / R), ("absolute", 1.0)])
@pytest.mark.parametrize("fields", [{}, {"alpha": 3.0}, {"scaling": "standard"}])
@pytest.mark.filterwarnings("ignore:lora_ga scaling")
def test_zeta_alone_sets_the_first_step(rule, scale, fields):
    model, (loss, batches) = layer(), regression()
    shared = {"zeta": 4.0, "zeta_rule": rule} | fields
    given = factors(model, "lora_ga", loss=loss, batches=batches, shared=shared)
    assert given.report["zeta"] == pytest.approx(4 * scale)
    step = first_step(given, gradient(model, loss, batches), 1e-10)
    close(step, -1e-10 * 4 * scale * best(gradient(model, loss, batches), 2 * R), 1e-7)


def test_gamma_is_the_papers_scale_and_weight_svd_the_authors():
    model, (loss, batches) = layer(), regression()
    given = factors(model, "lora_ga", loss=loss, batches=batches, shared={"gamma": 16.0})
    default = factors(model, "lora_ga", loss=loss, batches=batches)
    close(given.A, default.A, 1e-12)  # alpha = gamma = 16 is zeta = 16
    close(given.A @ given.A.T, torch.eye(R, dtype=torch.float64) * math.sqrt(M) / 16, 1e-12)
    weighted = factors(model, "lora_ga", loss=loss, batches=batches, shared={"zeta_rule": "weight_svd"})
    c = (torch.linalg.svdvals(model[0].weight.detach())[:R] / weighted.eta).sqrt().mean()
    assert weighted.report["scale"] == pytest.approx(float(c))


@pytest.mark.parametrize("m,n,r", [(48, 64, 4), (96, 32, 8), (40, 200, 2)])
def test_lora_ga_output_has_rms_alpha_over_gamma_at_any_shape(m, n, r):
    model, (loss, batches) = layer(m, n), regression(m, n)
    shared = {"rank": r, "alpha": 8.0, "gamma": 32.0}
    given = factors(model, "lora_ga", loss=loss, batches=batches, shared=shared)
    mean_square = given.update().square().sum() / m  # of the output, for unit-variance input
    assert float(mean_square.sqrt()) == pytest.approx(8 / 32, rel=1e-9)


def test_lora_ga_does_not_depend_on_the_loss_scale():
    model, (loss, batches) = layer(), regression()
    given = factors(model, "lora_ga", loss=loss, batches=batches)
    scaled = factors(model, "lora_ga", loss=lambda *a: 1e-4 * loss(*a), batches=batches)
    close(scaled.B, given.B, 1e-9)
    close(scaled.A, given.A, 1e-9)


def test_lora_ga_on_degenerate_gradients():
    model, (loss, batches) = layer(), regression()
    few = [(batches[0][0][:3], batches[0][1][:3])]  # three rows: a gradient of rank 3 < 2r
    given = factors(model, "lora_ga", loss=loss, batches=few)
    one = torch.eye(R, dtype=torch.float64)
    c = given.report["scale"]
    close(given.A @ given.A.T / c**2, one, 1e-12)
    close(given.B.T @ given.B / c**2, one, 1e-12)
    with pytest.raises(UserError, match="layer 0: its gradient is 0"):
        factors(model, "lora_ga", loss=lambda model, batch: 0 * loss(model, batch), batches=batches)
    with pytest.raises(UserError, match="layer 0: lora_ga needs 2 rank <= min.*2 x 25 > 48"):
        factors(model, "lora_ga", loss=loss, batches=batches, shared={"rank": 25})
    with pytest.raises(UserError, match="batches"):
        factors(model, "lora_ga")
