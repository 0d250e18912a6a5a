"""PiSSA and MiLoRA by theory, in float64: identities that no implementation detail may break."""

import pytest
import torch
from oracles import M, N, R, best, close, factors, layer

from lorax.errors import UserError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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


@pytest.mark.parametrize("shape,r", [((128, 128), 1), ((512, 512), 8), ((256, 320), 8)])
def test_milora_takes_random_weights_in_bf16(shape, r):
    """Among them one like that of 4096 x 4096 whose smallest singular value is 3 % of its usual size."""
    model, W = layer(*shape, dtype=torch.float32), torch.randn(shape)
    if r == 1:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        S[-1] = 0.03 * float(torch.linalg.norm(W)) / shape[0] ** 1.5
        W = (U * S) @ Vh
    with torch.no_grad():
        model[0].weight.copy_(1e-3 * W)
    assert factors(model, "milora", shared={"rank": r}).B.isfinite().all()
    assert factors(model.bfloat16(), "milora", shared={"rank": r}).B.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape,rank", [((128, 128), 112), ((128, 128), 4), ((160, 128), 112)])
def test_milora_refuses_what_rounding_made_of_zeros(shape, rank, dtype):
    model = layer(*shape, dtype=torch.float32)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(shape[0], rank) @ torch.randn(rank, shape[1]))
    said = f"layer 0: its weight is rank-deficient .*rounding to {str(dtype)[6:]} makes up to .*leave the layer out"
    with pytest.raises(UserError, match=said):
        factors(model.to(dtype), "milora", shared={"rank": 8})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_milora_refuses_exact_zeros_and_takes_rows_of_unlike_size(dtype):
    model = layer(128, 128, dtype=torch.float32)
    rows = torch.randn(128, 128)
    with torch.no_grad():
        model[0].weight.copy_(rows[torch.arange(128) // 2])
    with pytest.raises(UserError, match="rank-deficient"):
        factors(model.to(dtype), "milora")
    with torch.no_grad():
        model[0].weight.copy_(rows * torch.logspace(0, -3, 128)[:, None])
    assert float(factors(model, "milora", shared={"rank": 8}).report["sigma_min"]) > 0


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
