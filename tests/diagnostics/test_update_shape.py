"""Shape of an update, on matrices whose answer is known."""

import pytest
import torch

from lorax.diagnostics.update_shape import effective_rank, singular_values, stable_rank, update_shape
from lorax.probing import svd

M, N, R = 30, 22, 4


def orthonormal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator)).Q


U, V, S = orthonormal(M, N, 0), orthonormal(N, N, 1), torch.linspace(5, 1, N, dtype=torch.float64)
W = U * S @ V.mT
BASE = svd.full(W)


def shape_of(delta, **options):
    return update_shape(W, delta, BASE, subspace=R, **options)


def test_ranks():
    X = orthonormal(M, 6, 2) @ orthonormal(N, 6, 3).mT
    assert effective_rank(singular_values(X)) == pytest.approx(6, rel=1e-3)
    assert stable_rank(singular_values(X)) == pytest.approx(6, rel=1e-6)
    assert torch.allclose(singular_values(W.mT), S, rtol=1e-10)
    assert effective_rank(torch.zeros(3)) is None and stable_rank(torch.zeros(3)) is None


def test_overlap_is_one_inside_and_chance_outside():
    core = torch.randn(R, R, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    top = shape_of(U[:, :R] @ core @ V[:, :R].mT)
    assert top["overlap_top"] == pytest.approx(1) and top["overlap_bottom"] == pytest.approx(0, abs=1e-12)
    bottom = shape_of(U[:, -R:] @ core @ V[:, :R].mT)
    assert bottom["overlap_bottom_left"] == pytest.approx(1) and bottom["overlap_top_right"] == pytest.approx(1)
    noise = torch.randn(M, N, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert shape_of(noise)["overlap_top_left"] == pytest.approx(R / M, abs=0.08)
    assert shape_of(noise)["overlap_top"] == pytest.approx(shape_of(noise)["overlap_chance"], abs=0.08)


def test_a_new_direction_is_an_intruder_and_a_rescaling_is_not():
    assert shape_of(W, top_k=5)["intruders"] == 0
    assert shape_of(W)["relative_norm"] == pytest.approx(1)
    new = (U @ torch.ones(N, dtype=torch.float64) / N**0.5)[:, None]  # cosine 1/sqrt(22) with every old one
    strong = shape_of(4000 * new @ V[:, :1].mT, top_k=5)
    assert strong["intruders"] == 1
    assert strong["intruder_cosine"] == pytest.approx(N**-0.5, abs=3e-3)
    assert shape_of(4000 * new @ V[:, :1].mT, epsilon=0.1)["intruders"] == 0
    assert shape_of(0.01 * new @ V[:, :1].mT)["intruders"] == 0


def test_no_update():
    shape = shape_of(torch.zeros(M, N))
    assert shape["relative_norm"] == 0 and shape["intruders"] == 0
    assert shape["effective_rank"] is None and shape["overlap_top"] is None


def test_a_diverged_update_has_no_shape():
    assert shape_of(torch.full((M, N), float("nan"))) == {"relative_norm": None}
