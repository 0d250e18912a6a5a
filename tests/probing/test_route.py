"""The ways that a GPU takes to singular triplets, forced on a CPU: they agree with LAPACK, signs included."""

from functools import partial

import pytest
import torch
from torch import nn

import lorax
from lorax.probing import parallel, route, svd, together
from lorax.probing.cache import Cache
from lorax.probing.fingerprint import key_of
from lorax.probing.probe import VERSION, Probe
from lorax.probing.probe_layers import probe_layers

KINDS = [("top", 6), ("bottom", 6), ("ends", 6), ("full", 48)]
SHAPES = [(48, 48), (64, 48), (48, 64)]


def matrix(m, n, S, seed=0):
    g = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(k, min(m, n), generator=g, dtype=torch.float64)).Q for k in (m, n))
    return ((U * S) @ V.mT).float()


def spectrum(decay, k=48):
    return torch.logspace(0, -decay, k, dtype=torch.float64)


def sine(P, Q):
    return float(torch.linalg.matrix_norm(P - Q @ (Q.mT @ P), 2))


def agree(found, exact, tolerance):
    U, S, Vh = (part.double() for part in found)
    assert sine(U, exact.U) <= tolerance and sine(Vh.mT, exact.Vh.mT) <= tolerance
    torch.testing.assert_close(S, exact.S, rtol=1e-5, atol=0)
    assert bool(((U * exact.U).sum(0) > 0.99).all()), "the signs differ"


@pytest.fixture
def grams(monkeypatch):
    """How many Gram matrices each call of the solver got; layers come one after the other, as on a GPU."""
    monkeypatch.setattr(parallel, "MOST", 1)
    sizes, solve = [], torch.linalg.eigh

    def counting(G):
        if G.ndim == 3:
            sizes.append(len(G))
        return solve(G)

    monkeypatch.setattr(torch.linalg, "eigh", counting)
    return sizes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_matrices_of_several_layers_give_what_lapack_gives_each(kind, shape, grams):
    weights = [matrix(*shape, spectrum(3.0), seed) for seed in range(3)]
    places = route._places(kind, 48)
    found = list(route.decompose("gram", kind, [partial(torch.clone, W) for W in weights]))
    assert grams == [3]
    for triplets, W in zip(found, weights, strict=True):
        agree(triplets, svd.full(W.double()).rows(places), 1e-6)
        assert svd.residual(W.double(), triplets) <= svd.TOLERANCE
        [alone] = route.decompose("gram", kind, [lambda W=W: W])
        assert all(torch.equal(*pair) for pair in zip(triplets, alone, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_what_fails_the_residual_check_or_the_solver_goes_to_gesdd(kind, fails, monkeypatch):
    def wrong(G):
        if fails:
            raise torch.linalg.LinAlgError("no convergence")
        return torch.return_types.linalg_eigh((G[..., 0], torch.eye(48, dtype=G.dtype).expand_as(G)))

    W = matrix(48, 64, spectrum(3.0))
    exact = svd.full(W.double()).rows(route._places(kind, 48))
    monkeypatch.setattr(torch.linalg, "eigh", wrong)
    [found] = route.decompose("gram", kind, [lambda: W])
    agree(found, exact, 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rank_deficient_weight_gets_whole_orthonormal_bases(shape):
    W = matrix(*shape, torch.cat([torch.ones(20), torch.zeros(28)]).double())
    [(U, S, Vh)] = route.decompose("gram", ("full", 48), [lambda: W])
    torch.testing.assert_close((U * S) @ Vh, W.double(), rtol=0, atol=1e-12)
    for gram in (U.mT @ U, Vh @ Vh.mT):
        torch.testing.assert_close(gram, torch.eye(48, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(160, 160), (192, 160), (160, 192)])
@pytest.mark.parametrize("decay", [0.0, 16.0])
def test_krylov_ends_where_its_bound_is_reached_and_in_the_gram_matrix_where_not(shape, decay, grams):
    W = matrix(*shape, spectrum(decay, 160))
    [found] = route.decompose("krylov", ("top", 4), [lambda: W])
    assert grams == ([1] if decay == 0 else [])
    assert svd.residual(W.double(), found) < svd.KRYLOV_TOLERANCE
    if decay:  # else no subspace is singled out
        agree(found, svd.full(W.double()).rows(slice(0, 4)), route.SINE)


def test_the_way_follows_the_device(monkeypatch):
    assert route.way_for(torch.device("cpu")) == "lapack"
    cuda = torch.device("cuda")
    for capability, way in (((9, 0), "gram"), ((8, 0), "gram"), ((8, 9), "krylov"), ((12, 0), "krylov")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert route.way_for(cuda) == way
        assert {route.way_for(cuda, what) for what in ("bottom", "ends", "full")} == {"gram"}
        assert route.way_for(cuda, "top", torch.float64) == "lapack"  # whose square loses half the digits


@pytest.mark.parametrize("kind", ["top", "bottom", "full"])
def test_the_way_enters_the_key_of_the_cache(kind, monkeypatch):
    monkeypatch.setattr(svd, "DENSE", 32)
    layer, keys = nn.Linear(48, 48), {}
    for way in route.WAYS:
        cache = Cache(None)
        with route.forced(way):
            probe = Probe("0", layer, cache=cache)
            probe.full_svd() if kind == "full" else getattr(probe, f"{kind}_svd")(4)
        [keys[way]] = cache._memory
    assert len(set(keys.values())) == (3 if kind == "top" else 2)  # Krylov finds the largest ones only


def test_a_cpu_keeps_its_bits_and_its_keys(monkeypatch):
    monkeypatch.setattr(svd, "DENSE", 32)
    cache, layer = Cache(None), nn.Linear(48, 48)
    probe, W = Probe("0", layer, cache=cache), layer.weight.detach()
    wanted = [svd.top(W, 32).rows(slice(0, 4)), svd.bottom(W, 32).rows(slice(28, 32)), svd.full(W)]
    for found, exact in zip([probe.top_svd(4), probe.bottom_svd(4), probe.full_svd()], wanted, strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, exact.to(torch.float32), strict=True))
    kinds = (("top", 32), ("bottom", 32), ("full",))
    assert list(cache._memory) == [key_of("weight", VERSION, probe._digest, *kind) for kind in kinds]


def net(layers=5):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(48, 48) for _ in range(layers)), nn.Linear(48, 40))


def targets(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("folder", [False, True])
def test_layers_of_one_shape_are_solved_at_once_and_cached_ones_not_again(folder, grams, tmp_path):
    model = net()
    cache = Cache(tmp_path) if folder else None
    with route.forced("gram"):
        if folder:
            Probe("2", model[2], cache=cache).bottom_svd(3)
            grams.clear()
        found = probe_layers(model, targets(model), lambda probe: probe.bottom_svd(3), cache=cache)
        assert sorted(grams) == [1, 4 if folder else 5]
        for name, triplets in found.items():
            alone = Probe(name, model[int(name)]).bottom_svd(3)
            assert all(torch.equal(*pair) for pair in zip(triplets, alone, strict=True))


def test_layers_that_ask_for_different_things_are_soon_decomposed_alone(grams, monkeypatch):
    monkeypatch.setattr(svd, "DENSE", 32)
    model, asked = net(9), ["full_svd", "top_svd", "bottom_svd"]

    def look(probe):
        what = asked[int(probe.name) % 3]
        return getattr(probe, what)(*([] if what == "full_svd" else [3]))

    with route.forced("gram"):
        probe_layers(model, targets(model), look)
    assert grams == [9, 8, 1, 1, 1, 1]  # full of all; top of the others, in vain for most; from then on alone


def test_no_more_layers_at_once_than_memory_has_room_for(monkeypatch, grams):
    model = net()
    monkeypatch.setattr(together, "ON_CPU", 2 * together.COPIES * 8 * 48**2)
    assert [together.fitting((k, 99999), torch.device("cpu")) for k in (48, 9999)] == [2, 1]
    with route.forced("gram"):
        probe_layers(model, targets(model), lambda probe: probe.full_svd())
    assert sorted(grams) == [1, 1, 2, 2]


@pytest.mark.parametrize("init", ["pissa", "milora", "lora_xs", "svft"])
def test_methods_start_alike_by_every_way(init):
    starts = []
    for way in route.WAYS:
        model = net(3)
        with route.forced(way):
            adapters = lorax.attach(model, init, rank=4, train_head=False)
        starts.append(adapters.factors())
    for other in starts[1:]:
        for name, factors in starts[0].items():
            torch.testing.assert_close(other[name].B, factors.B, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(other[name].A, factors.A, rtol=1e-4, atol=1e-5)
