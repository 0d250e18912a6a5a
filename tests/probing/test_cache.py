"""The cache of decompositions: computed once, read in slices, safe when damaged, full or shared."""

import multiprocessing
import os
import pickle
import time

import pytest
import torch
from torch import nn

from lorax.probing.cache import Cache
from lorax.probing.calibration import Calibration
from lorax.probing.fingerprint import key_of
from lorax.probing.probe import Probe

PARTS = {"U": torch.arange(12.0).view(4, 3), "S": torch.arange(4.0), "Vh": torch.ones(4, 5)}


def counted(parts=PARTS):
    calls = []

    def compute():
        calls.append(1)
        return parts

    return compute, calls


@pytest.mark.parametrize("where", ["folder", None])
def test_an_entry_is_computed_once_and_read_in_slices(tmp_path, where):
    cache = Cache(tmp_path / "new" if where else None)
    compute, calls = counted()
    cache.get(key_of(1), compute)
    parts = cache.get(key_of(1), compute, slice(1, 3))
    assert len(calls) == 1 and cache.has(key_of(1)) and not cache.has(key_of(2))
    assert all(torch.equal(parts[name], PARTS[name][1:3]) for name in PARTS)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_entries_are_computed_again(tmp_path, damage):
    cache = Cache(tmp_path)
    compute, calls = counted()
    cache.get(key_of(1), compute)
    (path,) = tmp_path.glob("??/*.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 4
    path.write_bytes({"flip": bytes(raw), "truncate": bytes(raw[:-9]), "empty": b""}[damage])
    parts = cache.get(key_of(1), compute)
    assert len(calls) == 2 and all(torch.equal(parts[name], PARTS[name]) for name in PARTS)
    cache.get(key_of(1), compute)
    assert len(calls) == 2


@pytest.mark.parametrize("where", ["folder", None])
def test_the_least_recently_used_entries_go_first(tmp_path, where):
    size = 3000
    cache = Cache(tmp_path if where else None, max_bytes=3 * size + 2000)
    for number in range(3):
        cache.get(key_of(number), lambda: {"S": torch.zeros(size // 4)})
        for path in tmp_path.glob("??/*"):
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
    cache.get(key_of(0), lambda: {}, slice(0, 1))
    cache.get(key_of(3), lambda: {"S": torch.zeros(size // 4)})
    kept = [cache.has(key_of(number)) for number in range(4)]
    assert kept[0] and kept[3] and not kept[1]  # 0 was read again, so 1 was the oldest


def test_an_unwritable_folder_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("")
    compute, calls = counted()
    with pytest.warns(UserWarning, match="going on without it"):
        parts = Cache(tmp_path / "file").get(key_of(1), compute, slice(0, 2))
    assert len(calls) == 1 and torch.equal(parts["S"], PARTS["S"][:2])


def test_concurrent_processes_compute_an_entry_once(tmp_path):
    def compute():
        with open(tmp_path / "calls", "a") as file:
            file.write("x")
        time.sleep(0.3)
        return PARTS

    fork = multiprocessing.get_context("fork")
    jobs = [fork.Process(target=lambda: Cache(tmp_path / "c").get(key_of(0), compute)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert (tmp_path / "calls").read_text() == "x" and [job.exitcode for job in jobs] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dense", [1024, 16])
def test_with_or_without_a_cache_the_bits_are_the_same(tmp_path, monkeypatch, dtype, dense):
    monkeypatch.setattr("lorax.probing.svd.DENSE", dense)
    torch.manual_seed(0)
    module = nn.Linear(40, 30).to(dtype)

    def everything(cache):
        batches = [torch.linspace(-1, 1, 80, dtype=dtype).view(2, 40)]

        def loss(model, batch):
            return model(batch).square().mean()

        loss.digest = "square"
        calibration = Calibration(module, {"a": module}, loss, batches)
        probe = Probe("a", module, cache=cache, calibration=calibration)
        asked = (probe.top_svd(3), probe.top_svd(5, randomised=True), probe.bottom_svd(4), probe.full_svd())
        return [tensor for parts in (*asked, probe.gradient_svd(4)) for tensor in parts], probe.facts

    plain, facts = everything(None)
    for cache in (Cache(tmp_path), Cache(tmp_path), Cache(None)):
        cached, same = everything(cache)
        assert same == facts
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(plain, cached, strict=True))


def test_a_cached_gradient_needs_no_second_pass_and_a_changed_model_does(tmp_path):
    module, passes = nn.Linear(12, 9), []

    def loss(model, batch):
        passes.append(1)
        return model(batch).square().mean()

    def ask(**attributes):
        for key, value in attributes.items():
            setattr(loss, key, value)
        calibration = Calibration(module, {"a": module}, loss, [torch.ones(2, 12)])
        return Probe("a", module, cache=Cache(tmp_path), calibration=calibration).gradient_svd(2)

    ask(), ask()
    assert len(passes) == 2  # an anonymous loss cannot be told from another
    ask(digest="a"), ask(digest="a")
    assert len(passes) == 3
    with torch.no_grad():
        module.bias += 1
    ask(digest="a"), ask(digest="b")
    assert len(passes) == 5


def test_full_factors_are_one_storage_while_someone_holds_them():
    module = nn.Linear(8, 8)
    first, second = Probe("a", module).full_svd(), Probe("a", module).full_svd()
    assert all(a is b for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        module.weight += 1
    assert Probe("a", module).full_svd().U is not first.U


def test_a_cache_can_be_handed_to_another_process(tmp_path):
    for cache in (Cache(tmp_path), Cache(None)):
        cache.get("0" * 40, lambda: {"U": torch.ones(2, 3)})
        copied = pickle.loads(pickle.dumps(cache))
        assert torch.equal(copied.get("0" * 40, lambda: 1 / 0)["U"], torch.ones(2, 3))
