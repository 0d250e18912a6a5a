"""Singular triplets: exact at both ends and in whole spectra, randomised ones within their printed bound."""

import pytest
import torch

from lorax.probing import svd

torch.manual_seed(0)


def matrix(m, n, spectrum, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = min(m, n)
    U = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64)).Q
    return (U * spectrum) @ V.T


def sine(P, Q):
    """The largest principal angle between the column spaces of two orthonormal matrices."""
    return float(torch.linalg.matrix_norm(P - Q @ (Q.mT @ P), 2))


def orthonormal(triplets):
    one = torch.eye(len(triplets.S), dtype=triplets.U.dtype)
    return max(float((gram - one).abs().max()) for gram in (triplets.U.mT @ triplets.U, triplets.Vh @ triplets.Vh.mT))


SHAPES = [(96, 96), (64, 160), (160, 64)]


@pytest.mark.parametrize("m,n", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_are_those_of_gesdd(m, n, dtype):
    W = matrix(m, n, torch.logspace(0, -4.5, min(m, n), dtype=torch.float64)).to(dtype)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    k, r = min(m, n), 8
    for triplets, part in ((svd.top(W, r), slice(0, r)), (svd.bottom(W, r), slice(k - r, k))):
        assert orthonormal(triplets) < 1e-12
        assert sine(triplets.U, U[:, part]) < 1e-7 and sine(triplets.Vh.mT, Vh[part].mT) < 1e-7
        torch.testing.assert_close(triplets.S, S[part], rtol=1e-8, atol=0)


@pytest.mark.parametrize("m,n", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 20])
def test_rank_deficient_weights_still_give_whole_orthonormal_bases(m, n, rank):
    k = min(m, n)
    W = matrix(m, n, torch.cat([torch.ones(rank), torch.zeros(k - rank)]).double()).float()
    triplets = svd.full(W)
    assert orthonormal(triplets) < 1e-12
    torch.testing.assert_close((triplets.U * triplets.S) @ triplets.Vh, W.double(), rtol=0, atol=1e-12)


def test_repeated_singular_values_compare_by_projector():
    W = matrix(48, 80, torch.tensor([3.0] * 6 + [1.0] * 42, dtype=torch.float64))
    exact = torch.linalg.svd(W).U[:, :6]
    assert sine(svd.top(W.float(), 6).U, exact) < 1e-6


@pytest.mark.parametrize("flip", [False, True])
def test_ends_of_large_matrices_are_those_of_the_whole_spectrum(monkeypatch, flip):
    monkeypatch.setattr(svd, "DENSE", 64)
    W = matrix(320, 200, torch.logspace(0, -3, 200, dtype=torch.float64)).float()
    W = W.T if flip else W
    whole = svd.full(W)
    assert sine(svd.top(W, 6).U, whole.U[:, :6]) < 1e-4  # block Krylov, float32
    assert sine(svd.top(W, 40).U, whole.U[:, :40]) < 1e-9  # by the Gram matrix: 40 is too wide for Krylov
    assert sine(svd.bottom(W, 6).Vh.mT, whole.Vh[-6:].mT) < 1e-8


def test_the_bottom_of_a_large_rank_deficient_matrix_is_its_null_space(monkeypatch):
    monkeypatch.setattr(svd, "DENSE", 32)
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-3, 4, shape, generator=draw).float() for shape in ((60, 50), (50, 90)))
    W = left @ right  # of rank 50, exactly: whole numbers
    triplets = svd.bottom(W, 5)
    assert orthonormal(triplets) < 1e-12 and float((W.double() @ triplets.Vh.mT).abs().max()) < 1e-9 * float(W.norm())


def test_the_residual_sees_a_wrong_vector():
    W = matrix(40, 60, torch.linspace(2, 1, 40, dtype=torch.float64))
    triplets = svd.full(W)
    assert svd.residual(W, triplets) < 1e-12
    triplets.Vh[3] += 1e-4 * triplets.Vh[7]
    assert svd.residual(W, triplets) > 1e-6


@pytest.mark.parametrize("m,n", [(256, 256), (192, 576), (576, 192)])
@pytest.mark.parametrize("decay", [-0.3, -3.0])
def test_randomised_subspace_is_within_its_bound(m, n, decay):
    W = matrix(m, n, torch.logspace(0, decay, min(m, n), dtype=torch.float64)).float()
    triplets, bound = svd.randomised(W, 6, torch.Generator().manual_seed(1))
    exact = svd.full(W)
    off = max(sine(triplets.U, exact.U[:, :6]), sine(triplets.Vh.mT, exact.Vh[:6].mT))
    assert off <= bound + 1e-6 and bound <= 1e-2
    again, _ = svd.randomised(W, 6, torch.Generator().manual_seed(1))
    assert torch.equal(triplets.U, again.U)


def test_leading_triplets_of_a_decaying_matrix_hold_the_optimal_energy():
    G = matrix(300, 200, torch.logspace(0, -6, 200, dtype=torch.float64)).float()
    triplets, exact = svd.leading(G, 32), torch.linalg.svdvals(G.double())
    assert orthonormal(triplets) < 1e-5
    held = torch.linalg.norm(triplets.U.mT @ G.double()) / torch.linalg.norm(exact[:32])
    assert abs(float(held) - 1) < 1e-9
    low = matrix(300, 200, torch.cat([torch.ones(3), torch.zeros(197)]).double()).float()
    assert orthonormal(svd.leading(low, 16)) < 1e-5


def test_signs_do_not_depend_on_the_route():
    W = matrix(50, 70, torch.linspace(2, 0.1, 50, dtype=torch.float64))
    for part in zip(svd.full(W), svd.full(W.float()), strict=True):
        torch.testing.assert_close(*part, rtol=0, atol=1e-4)
    peaks = svd.full(W).U
    assert bool((peaks.gather(0, peaks.abs().argmax(0)[None]) > 0).all())
