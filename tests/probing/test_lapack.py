"""LAPACK by its function pointers: right results, reported failures, other threads run meanwhile."""

import threading
import time

import numpy as np
import pytest

from lorax.probing.lapack import call


def reduce(k):
    G = np.random.default_rng(0).standard_normal((k, k))
    d, e, tau, work = np.empty(k), np.empty(k - 1), np.empty(k - 1), np.empty(64 * k)
    return call("dsytrd", b"L", k, G + G.T, k, d, e, tau, work, len(work)), d, e


def test_a_reduction_keeps_the_eigenvalues():
    failed, d, e = reduce(40)
    G = np.random.default_rng(0).standard_normal((40, 40))
    values = d.copy()
    assert failed == 0 and call("dsterf", 40, values, e.copy()) == 0
    assert values == pytest.approx(np.linalg.eigvalsh(G + G.T), abs=1e-12)


def test_what_lapack_refuses_is_returned(capfd):
    assert call("dsterf", -1, np.empty(1), np.empty(1)) == -1


def test_other_threads_run_meanwhile():
    worker, beats = threading.Thread(target=reduce, args=(1500,)), 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        beats += 1
    assert beats > 20  # with the lock held: one or two
