"""LoRA from another start, by theory in float64, and against PEFT where it computes the same."""

import math

import peft
import pytest
import torch
from oracles import M, N, R, best, close, cosine, factors, first_step, gradient, layer, regression
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.utils.incremental_pca import IncrementalPCA
from torch import nn

import lorax
from lorax.errors import UserError
from lorax.initializers.registry import build


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def inputs(rows=300, n=N):
    return randn(rows, n) * torch.logspace(0, -1.5, n, dtype=torch.float64)


def passed(model, batch):
    return model(batch).square().sum()


# --- OLoRA


@pytest.mark.parametrize("m,n", [(M, N), (N, M)])
@pytest.mark.parametrize("alpha", [None, 9.0])
def test_olora_trains_the_part_of_the_weight_in_the_span_of_its_first_columns(m, n, alpha):
    model = layer(m, n)
    W = model[0].weight.detach()
    given = factors(model, "olora", shared={"alpha": alpha})
    Q, corner = torch.linalg.qr(W)
    close(given.update(), Q[:, :R] @ corner[:R], 1e-12)
    close(given.B.T @ given.B, torch.eye(R, dtype=torch.float64) / given.eta, 1e-12)
    assert float(given.A[:, :R].tril(-1).abs().max()) == 0 and bool((given.A.diagonal() >= 0).all())
    assert given.report["captured"] == pytest.approx(float(given.update().norm() / W.norm()) ** 2)
    assert given.shifts_base and given.eta == (1 if alpha is None else alpha / R)


def test_olora_at_eta_1_is_pefts():
    base = nn.Sequential(nn.Linear(N, M))
    given = factors(base, "olora")
    config = peft.LoraConfig(r=R, lora_alpha=R, target_modules=["0"], init_lora_weights="olora")
    theirs = peft.get_peft_model(base, config).base_model.model[0]
    product = (theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight).detach()
    torch.testing.assert_close(given.update(), product, rtol=1e-4, atol=1e-5)


# --- the random orthogonal start


@pytest.mark.parametrize("rank", [1, 4, 5])
def test_orthogonal_factors_have_no_product_and_both_have_gradients(rank):
    model, (loss, batches) = layer(), regression()
    given = factors(model, "orthogonal", shared={"rank": rank})
    assert float(given.update().abs().max()) < 1e-14
    assert torch.linalg.matrix_rank(given.A) == (rank + 1) // 2 and torch.linalg.matrix_rank(given.B) == rank // 2
    G = gradient(model, loss, batches)
    for grad in (G @ given.A.T, given.B.T @ G) if rank > 1 else ():
        assert float(grad.norm()) > 1e-3 * float(G.norm())
    scale = 0.1 * math.sqrt(1 / 2)  # of an entry: a row of G_A with r / 2 entries by rows of Q with r
    assert rank == 1 or float(given.A.std()) == pytest.approx(scale, rel=0.35)


def test_orthogonal_exports_at_its_own_rank(tmp_path):
    """W' - W0 = eta (B A - B0 A0) with B0 A0 = 0: rank r, though two products carry it."""
    model = layer()
    adapters = lorax.attach(model, init="orthogonal", rank=R)
    with torch.no_grad():
        for p in adapters.parameters():
            p.add_(0.1 * randn(*p.shape))
    report = adapters.export_peft(tmp_path / "peft", rank=R)
    assert report["rank"] == {"0": R} and report["error"]["0"] < 1e-7


# --- LoRA-One


@pytest.mark.parametrize("fields", [{}, {"alpha": 4.0, "gamma": 8.0}, {"scaling": "standard"}])
def test_lora_one_starts_at_one_truncated_gradient_step(fields):
    model, (loss, batches) = layer(), regression()
    G = gradient(model, loss, batches)
    given = factors(model, "lora_one", loss=loss, batches=batches, shared=fields)
    S = torch.linalg.svdvals(G)
    moved = given.update()
    close(moved, -given.eta / (fields.get("gamma", 128.0) * float(S[0])) * best(G, R), 1e-10)
    assert cosine(moved, -G) == pytest.approx(float(S[:R].norm() / S.norm()), abs=1e-9)
    close(given.B.T @ given.B, given.A @ given.A.T, 1e-10)  # balanced
    assert not given.shifts_base and given.report["captured"] == pytest.approx(float(S[:R].norm() / S.norm()) ** 2)


def test_lora_one_lowers_the_loss_at_step_0_and_ignores_its_scale():
    model, (loss, batches) = layer(), regression()
    before, first = loss(model, batches[0]).item(), factors(model, "lora_one", loss=loss, batches=batches)
    scaled = factors(model, "lora_one", loss=lambda m, b: 1e-3 * loss(m, b), batches=batches)
    close(scaled.update(), first.update(), 1e-9)
    adapters = lorax.attach(model, init="lora_one", rank=R, gamma=1e4, loss=loss, batches=batches)
    assert loss(model, batches[0]).item() < before and not build("lora_one").starts_at_base
    with adapters.disabled():
        assert loss(model, batches[0]).item() == before


# --- EVA


def test_eva_is_the_pca_of_centred_inputs_and_keeps_the_most_of_them():
    model, x = layer(), inputs()
    x = x - x.mean(0)
    given = factors(model, "eva", loss=passed, batches=[x[:100], x[100:]])
    close(given.A @ given.A.T, torch.eye(R, dtype=torch.float64), 1e-12)
    pca = IncrementalPCA(n_components=R)
    pca.partial_fit(x)
    close(given.A.T @ given.A, pca.components_.T @ pca.components_, 1e-9)
    S = torch.linalg.svdvals(x)
    assert given.report["captured"] == pytest.approx(float(S[:R].norm() / S.norm()) ** 2, rel=1e-9)
    kept = float((x @ given.A.T).norm())
    for _ in range(20):
        other = torch.linalg.qr(randn(N, R)).Q
        assert float((x @ other).norm()) < kept
    assert float(given.B.norm()) == 0 and given.eta == 1 / R


def test_eva_leaves_the_mean_in():
    model, x = layer(), inputs() + 3.0
    given = factors(model, "eva", loss=passed, batches=[x])
    _, _, Vh = torch.linalg.svd(x, full_matrices=False)
    close(given.A.T @ given.A, Vh[:R].T @ Vh[:R], 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_massive_activation_leaves_eva_the_other_directions(dtype):
    """SmolLM2's layer 11 has one direction with 0.9998 of the trace before its down-projection."""
    x = inputs(40)
    x[0, 5] = 1e3 * float(x.norm(dim=1).max())
    given = factors(layer(dtype=dtype), "eva", loss=passed, batches=[x.to(dtype)])
    _, S, Vh = torch.linalg.svd(x, full_matrices=False)
    assert float(S[R - 1] / S[0]) ** 2 < 1e-5 < 1 - 1e-4 < given.report["captured"]
    close((given.A.T @ given.A).double(), Vh[:R].T @ Vh[:R], 1e-2 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("x,spans", [(torch.ones(5, N, dtype=torch.float64), 1), (0 * torch.ones(5, N).double(), 0)])
def test_eva_needs_inputs_of_its_rank(x, spans):
    with pytest.raises(UserError, match=f"layer 0: eva rank=4, but .* span {spans} directions"):
        factors(layer(), "eva", loss=passed, batches=[x])


# --- CorDA


def second_moment(x, damping=0.01):
    C = x.T @ x / len(x)
    C = C / C.diagonal().mean()
    return C + damping * torch.eye(len(C), dtype=C.dtype)


@pytest.mark.parametrize("m,n", [(M, N), (N, M)])
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_is_the_published_formula_without_its_inverse(m, n, mode):
    model, x = layer(m, n), inputs(n=n)
    W, C = model[0].weight.detach(), second_moment(x)
    given = factors(model, "corda", loss=passed, batches=[x], mode=mode, shared={"alpha": 2.0})
    U, S, Vh = torch.linalg.svd(W @ C, full_matrices=False)
    part = slice(0, R) if mode == "ipm" else slice(len(S) - R, len(S))
    close(given.update(), U[:, part] @ torch.diag(S[part]) @ Vh[part] @ torch.linalg.inv(C), 1e-7)
    close(given.B.T @ given.B, torch.diag(S[part]) / given.eta, 1e-7)
    assert given.report["captured"] == pytest.approx(float(S[part].norm() / S.norm()) ** 2, rel=1e-6)
    assert given.shifts_base


def test_corda_ipm_is_the_best_approximation_in_the_norm_of_the_inputs():
    model, x = layer(), inputs()
    W, C = model[0].weight.detach(), second_moment(x)
    ours = factors(model, "corda", loss=passed, batches=[x]).update()
    left = float(((W - ours) @ C).norm())
    assert left < float(((W - best(W, R)) @ C).norm())
    assert left == pytest.approx(float(torch.linalg.svdvals(W @ C)[R:].norm()), rel=1e-9)
    scaled = factors(model, "corda", loss=passed, batches=[1e3 * x])
    close(scaled.B, factors(model, "corda", loss=passed, batches=[x]).B, 1e-9)  # the inputs' size has no say


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_has_pefts_product(mode):
    model, x = nn.Sequential(nn.Linear(N, M)), inputs().float()
    given = factors(model, "corda", loss=passed, batches=[x], mode=mode)
    config = peft.LoraConfig(
        r=R, lora_alpha=R, target_modules=["0"], init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=mode),
    )  # fmt: skip
    preprocess_corda(model, config, run_model=lambda: model(x))
    theirs = peft.get_peft_model(model, config).base_model.model[0]
    product = (theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight).detach()
    assert float((given.update() - product).norm() / product.norm()) < 1e-3


def test_corda_refuses_what_would_never_train():
    with pytest.raises(UserError, match="layer 0: its inputs are 0 on the calibration data"):
        factors(layer(), "corda", loss=passed, batches=[0 * inputs()])
    model = layer()
    model[0].weight.data[:, :] = randn(M, 2) @ randn(2, N)
    with pytest.raises(UserError, match="corda mode=ipm rank=4, but a singular value of W C is .*never train"):
        factors(model, "corda", loss=passed, batches=[inputs()])


# --- the first step of each


@pytest.mark.parametrize("name", ["olora", "orthogonal", "corda", "eva"])
def test_the_first_step_on_the_installed_layer_is_the_formulas(name):
    """W' moves by eta (dB A + B dA) with dB = -lr eta G A^T, dA = -lr eta B^T G."""
    model, (loss, batches) = layer(), regression()
    given = factors(model, name, loss=loss, batches=batches)
    G = gradient(model, loss, batches)
    adapters = lorax.attach(model, init=name, rank=R, loss=loss, batches=batches)
    loss(model, batches[0]).backward()
    torch.optim.SGD(adapters.parameters(), lr=1e-4).step()
    close(adapters.delta()["0"].double(), first_step(given, G, 1e-4), 1e-6)
