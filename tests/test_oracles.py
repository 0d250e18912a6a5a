"""What the methods are by theory, in float64: identities that no implementation detail may break."""

import math

import pytest
import torch
from torch import nn

import lorax
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.initializers.base import build
from lorax.initializers.lora_ga import DIRECTIONS

M, N, R = 48, 64, 4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def layer(m=M, n=N, dtype=torch.float64):
    return nn.Sequential(nn.Linear(n, m, bias=False)).to(dtype)


def regression(m=M, n=N):
    """A loss whose gradient has a full, decaying spectrum, and its only batch."""
    x = torch.randn(200, n, dtype=torch.float64) * torch.logspace(0, -1.5, n, dtype=torch.float64)
    y = torch.randn(200, m, dtype=torch.float64)
    return (lambda model, batch: (model(batch[0]) - batch[1]).square().sum() / 400), [(x, y)]


def gradient(model, loss, batches):
    weight = model[0].weight
    return torch.autograd.grad(loss(model, batches[0]), weight.requires_grad_(True))[0]


def factors(model, name, *, loss=None, batches=None, seed=0, **fields):
    initializer = build(name, shared={"rank": R} | fields.pop("shared", {}), own=fields)
    return make_factors(model, initializer, loss=loss, batches=batches, seed=seed)["0"]


def first_step(given, G, lr):
    """Delta W after one SGD step on A and B, telescoped."""
    dB, dA = -lr * given.eta * G @ given.A.T, -lr * given.eta * given.B.T @ G
    return given.eta * (dB @ given.A + given.B @ dA + dB @ dA)


def best(matrix, r):
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :r] * S[:r]) @ Vh[:r]


def cosine(a, b):
    return float((a * b).sum() / a.norm() / b.norm())


def close(a, b, tolerance):
    assert float((a - b).norm() / b.norm()) < tolerance


# --- LoRA -----------------------------------------------------------------------------------------


def test_lora_first_step_moves_b_alone_along_the_rows_of_a():
    model, (loss, batches) = layer(), regression()
    G, given = gradient(model, loss, batches), factors(layer(), "lora")
    adapters = lorax.attach(model, rank=R)
    start = {name: p.clone() for name, p in adapters.named_parameters().items()}
    loss(model, batches[0]).backward()
    torch.optim.SGD(adapters.parameters(), lr=0.1).step()
    now = adapters.named_parameters()
    assert torch.equal(now["0.A"], start["0.A"]) and not torch.equal(now["0.B"], start["0.B"])
    close(adapters.delta()["0"].double(), -0.1 * given.eta**2 * G @ given.A.T @ given.A, 1e-6)


@pytest.mark.parametrize("distribution,variance", [("kaiming", 1 / (3 * 4096)), ("gaussian", 1 / 64)])
def test_lora_a_has_the_declared_law_and_its_own_seed(distribution, variance):
    def draw(seed=0, dtype=torch.float64):
        model = layer(8, 4096, dtype)
        return factors(model, "lora", seed=seed, shared={"rank": 8}, distribution=distribution).A

    assert abs(float(draw().var()) / variance - 1) < 0.03
    assert torch.equal(draw(), draw()) and not torch.equal(draw(), draw(seed=1))
    assert torch.equal(draw().float(), draw(dtype=torch.float32))


def test_rslora_keeps_the_first_decrease_of_the_loss_at_any_rank():
    model, (loss, batches) = layer(64, 256), regression(64, 256)
    G = gradient(model, loss, batches)

    def decrease(rank, scaling):
        given = factors(model, "lora", shared={"rank": rank, "scaling": scaling})
        return -float((first_step(given, G, 1e-9) * G).sum())

    assert decrease(64, "rslora") / decrease(4, "rslora") == pytest.approx(1, rel=0.3)
    assert decrease(64, "standard") / decrease(4, "standard") == pytest.approx(1 / 16, rel=0.3)


# --- LoRA-GA --------------------------------------------------------------------------------------


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


# --- PiSSA, MiLoRA --------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 16.0])
@pytest.mark.parametrize("m,n", [(48, 64), (64, 48), (40, 40)])
def test_pissa_takes_the_best_rank_r_part_out_of_the_weight(m, n, alpha):
    model = layer(m, n)
    W = model[0].weight.detach()
    S = torch.linalg.svdvals(W)
    given = factors(model, "pissa", shared={"alpha": alpha})
    rest = W - given.update()
    assert given.eta == (1.0 if alpha is None else alpha / R)
    assert float(torch.linalg.matrix_norm(rest, 2)) == pytest.approx(float(S[R]), rel=1e-11)
    assert float(rest.square().sum() + given.update().square().sum()) == pytest.approx(float(W.square().sum()))
    assert float((rest.T @ given.B).abs().max()) < 1e-12 and float((rest @ given.A.T).abs().max()) < 1e-12
    close(given.B.T @ given.B, torch.diag(S[:R]) / given.eta, 1e-11)
    close(given.A @ given.A.T, torch.diag(S[:R]) / given.eta, 1e-11)
    assert given.report["captured"] == pytest.approx(float(S[:R].square().sum() / S.square().sum()))


def test_milora_leaves_the_best_rank_k_minus_r_weight_and_complements_pissa():
    model = layer()
    W = model[0].weight.detach()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    given = factors(model, "milora")
    rest = W - given.update()
    close(rest, best(W, M - R), 1e-12)
    assert int(torch.linalg.matrix_rank(rest)) == M - R
    assert float((U[:, : M - R].T @ given.B).abs().max()) < 1e-12
    assert float((Vh[: M - R] @ given.A.T).abs().max()) < 1e-12
    assert float(given.update().square().sum()) == pytest.approx(float(S[-R:].square().sum()))
    close(factors(model, "pissa", shared={"rank": M - R}).update() + given.update(), W, 1e-12)


def test_svd_methods_refuse_what_would_never_train():
    model = layer()
    with torch.no_grad():
        model[0].weight.copy_(best(model[0].weight, 6))
    with pytest.raises(UserError, match="layer 0: its weight is rank-deficient"):
        factors(model, "milora")
    factors(model, "pissa"), factors(model, "lora_xs"), factors(model, "svft")  # the top is sound
    for name in ("pissa", "lora_xs"):
        with pytest.raises(UserError, match="singular value 8 of its weight.*lower the rank"):
            factors(model, name, shared={"rank": 8})
    for name in ("lora", "pissa", "milora", "lora_xs"):
        with pytest.raises(UserError, match="layer 0: rank=49 exceeds 48"):
            factors(model, name, shared={"rank": 49})
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="layer 0: its weight holds values that are not finite"):
        factors(model, "pissa")


@pytest.mark.parametrize("name", ["pissa", "milora"])
def test_repeated_singular_values_leave_the_subspace_defined(name):
    model = layer(40, 40)
    Q = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    spectrum = torch.tensor([5.0] * R + [2.0] * (40 - 2 * R) + [0.1] * R, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.copy_((Q * spectrum) @ Q.flip(1).T)
    part = Q[:, :R] if name == "pissa" else Q[:, -R:]
    B = torch.linalg.qr(factors(model, name).B).Q
    close(B @ B.T, part @ part.T, 1e-11)


def test_orthogonal_changes_of_basis_carry_through():
    """U8: for W -> P W Q the offset becomes P (offset) Q."""
    model, turned = layer(), layer()
    P, Q = (torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q for d in (M, N))
    with torch.no_grad():
        turned[0].weight.copy_(P @ model[0].weight @ Q)
    for name in ("pissa", "milora"):
        close(factors(turned, name).update(), P @ factors(model, name).update() @ Q, 1e-10)


# --- LoRA-XS, SVFT --------------------------------------------------------------------------------


def trained_delta(name, **fields):
    """Delta W of the installed adapter after a few large steps."""
    model, (loss, batches) = layer(), regression()
    adapters = lorax.attach(model, init=name, rank=R, **fields)
    optimiser = torch.optim.SGD(adapters.parameters(), lr=0.3)
    for _ in range(3):
        optimiser.zero_grad()
        loss(model, batches[0]).backward()
        optimiser.step()
    return adapters.frozen_weight("0"), adapters.delta()["0"].double(), adapters


def test_lora_xs_moves_within_the_principal_span():
    W, delta, adapters = trained_delta("lora_xs")
    U, S, Vh = torch.linalg.svd(W)
    assert adapters.count_trainable() == R * R and float(delta.norm()) > 1e-2
    assert float((delta - U[:, :R] @ (U[:, :R].T @ delta)).norm() / delta.norm()) < 1e-6
    assert float((delta - (delta @ Vh[:R].T) @ Vh[:R]).norm() / delta.norm()) < 1e-6
    given = adapters.factors()["0"]
    close(given.B.T @ given.B, torch.eye(R, dtype=torch.float64), 1e-12)
    close(given.A @ given.A.T, torch.diag(S[:R] ** 2), 1e-11)


def test_lora_xs_noise_is_the_authors_option():
    assert float(factors(layer(), "lora_xs").M.values.abs().max()) == 0
    assert 0 < float(factors(layer(), "lora_xs", noise=1e-5).M.values.std()) < 3e-5


def test_svft_plain_keeps_the_singular_vectors():
    W, delta, adapters = trained_delta("svft")
    now = W + delta
    assert adapters.count_trainable() == M and float(delta.norm()) > 1e-2
    close(now @ now.T @ W @ W.T, W @ W.T @ now @ now.T, 1e-6)
    given = adapters.factors()["0"]
    close(given.B.T @ given.B, torch.eye(M, dtype=torch.float64), 1e-12)
    close(given.A @ given.A.T, torch.eye(M, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("width", [0, 1, 5, 47])
def test_svft_patterns_have_as_many_distinct_cells_as_the_band(width):
    from lorax.adapters import core

    for pattern in ("banded", "random", "top_k"):
        given = factors(layer(M, M), "svft", pattern=pattern, width=width)
        cells = set(zip(given.M.rows.tolist(), given.M.cols.tolist(), strict=True))
        assert len(cells) == given.count_trainable() == M * (2 * width + 1) - width * (width + 1)
        assert all(0 <= i < M and 0 <= j < M for i, j in cells)
        if pattern == "banded":
            assert all(abs(i - j) <= width for i, j in cells)
        assert float(core.dense(given.M, M, given.B).abs().max()) == 0


def test_svft_top_k_takes_the_best_aligned_pairs_of_square_layers_only():
    given = factors(layer(M, M), "svft", pattern="top_k", width=1)
    scores = (given.B.T @ given.A.T).abs()
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[given.M.rows, given.M.cols] = True
    assert float(scores[chosen].min()) >= float(scores[~chosen].max())
    with pytest.raises(UserError, match=r"layer 0: svft pattern=top_k ranks .*48x64"):
        factors(layer(), "svft", pattern="top_k")
    with pytest.raises(UserError, match="width=48 must be below"):
        factors(layer(), "svft", pattern="banded", width=48)


def test_svft_random_cells_follow_the_seed():
    def cells(seed):
        given = factors(layer(), "svft", pattern="random", width=3, seed=seed)
        return (given.M.rows * M + given.M.cols).tolist()

    assert cells(0) == cells(0) != cells(1)
