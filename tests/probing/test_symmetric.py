"""Eigenvectors at both ends of a spectrum: those of the whole spectrum, whatever LAPACK does."""

import pytest
import torch
from threadpoolctl import ThreadpoolController

from lorax.probing import svd, symmetric

K = 300  # above symmetric.SMALL


def weight(spectrum, n=400, seed=0):
    draw = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(K, K, generator=draw, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, K, generator=draw, dtype=torch.float64)).Q
    return ((U * spectrum) @ V.T).float()


def sine(P, Q):
    return float(torch.linalg.matrix_norm(P - Q @ (Q.mT @ P), 2))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("low", [-1.0, -4.5])
def test_both_ends_are_those_of_the_whole_spectrum(low, flip):
    W = weight(torch.logspace(0, low, K, dtype=torch.float64))
    W = W.T.contiguous() if flip else W
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    triplets = svd.ends(W, 8)
    for mine, part in ((slice(0, 8), slice(0, 8)), (slice(8, 16), slice(K - 8, K))):
        assert sine(triplets.U[:, mine], U[:, part]) < 1e-7 and sine(triplets.Vh[mine].mT, Vh[part].mT) < 1e-7
        torch.testing.assert_close(triplets.S[mine], S[part], rtol=1e-8, atol=0)
    for mine, other in zip(svd.ends(W, 2), svd.full(W).rows([0, 1, K - 2, K - 1]), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)  # signs as well


@pytest.mark.parametrize("rank", [0, 1, 150])
def test_ends_of_a_deficient_weight_reach_into_its_null_space(rank):
    W = weight(torch.cat([torch.ones(rank), torch.zeros(K - rank)]).double())
    triplets = svd.ends(W, 8)
    one = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(triplets.U.mT @ triplets.U, one, rtol=0, atol=1e-9)
    torch.testing.assert_close(triplets.Vh @ triplets.Vh.mT, one, rtol=0, atol=1e-9)
    torch.testing.assert_close(W.double() @ triplets.Vh.mT, triplets.U * triplets.S, rtol=0, atol=1e-9)
    assert float(triplets.S[max(rank, 8) if rank < 8 else 8 :].max()) < 1e-5


def test_where_lapack_reports_a_failure_the_whole_spectrum_is_computed(monkeypatch):
    W = weight(torch.linspace(2, 1, K, dtype=torch.float64))
    usual = svd.ends(W, 4)
    monkeypatch.setattr(symmetric, "call", lambda name, *arguments: 1)
    for a, b in zip(svd.ends(W, 4), usual, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_wrong_vectors_do_not_get_past_the_residual(monkeypatch):
    W = weight(torch.linspace(2, 1, K, dtype=torch.float64))
    usual = svd.ends(W, 4)
    wrong = torch.eye(K, dtype=torch.float64)[:, [*range(4), *range(K - 4, K)]]
    monkeypatch.setattr(svd, "eigenvectors", lambda G, first, last: wrong)
    for a, b in zip(svd.ends(W, 4), usual, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_scipy_uses_one_thread_within_and_its_own_number_after():
    def threads():
        return [pool.num_threads for pool in ThreadpoolController().select(internal_api="openblas").lib_controllers]

    with symmetric.one_thread():
        pass  # scipy is loaded from here on
    before = threads()
    with symmetric.one_thread():
        assert set(threads()) <= {1}
    assert threads() == before
