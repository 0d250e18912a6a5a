"""LoRA-XS and SVFT by theory, in float64: identities that no implementation detail may break."""

import pytest
import torch
from oracles import M, R, close, factors, layer, regression

import lorax
from lorax.errors import UserError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
