"""Whose update stands for full fine-tuning when other arms are compared with it."""

from types import SimpleNamespace

import pytest
import torch

from lorax.running.diagnose import keeps_update, read_update, write_update


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAX_CACHE", str(tmp_path))
    return tmp_path


def run(seed=0, run_id="a", targets="all-linear", lr=1e-3, **identity):
    config = SimpleNamespace(seed=seed, targets=targets, lr=lr)
    return SimpleNamespace(config=config, run_id=run_id, identity={"task": "toy", "steps": 8} | identity)


def delta(value):
    return {"h.0.q": torch.full((2, 3), float(value))}


@pytest.mark.parametrize(
    "name, tag, kept",
    [("s", "s.final", True), ("s", "s.tune", False), ("s", "s.cost", False), ("s", "s.screen", False),
     ("s", None, True), ("s", "mine", True), ("a.b", "a.b.tune", False), ("a.b", "a.b.final", True)],
)  # fmt: skip
def test_of_a_study_only_final_runs_count(name, tag, kept):
    assert keeps_update(SimpleNamespace(name=name, tag=tag)) is kept


def test_the_same_seed_is_preferred_else_the_lowest():
    for seed in (10, 2):
        write_update(run(seed, f"full{seed}"), delta(seed))
    for seed, expected in {10: 10, 2: 2, 5: 2}.items():
        update, facts = read_update(run(seed, "lora"))
        assert torch.equal(update["h.0.q"], delta(expected)["h.0.q"])
        assert facts == {"run_id": f"full{expected}", "seed": str(expected), "lr": "0.001"}
    assert read_update(run(steps=9)) == (None, None)


def test_the_same_targets_are_preferred_else_all():
    write_update(run(run_id="all"), delta(1))
    assert read_update(run(targets=["q"]))[1]["run_id"] == "all"
    write_update(run(run_id="some", targets=["q"]), delta(2))
    assert read_update(run(targets=["q"]))[1]["run_id"] == "some"
    assert read_update(run())[1]["run_id"] == "all"


def test_a_cache_that_cannot_be_written_is_done_without(own_cache):
    (own_cache / "updates").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="is not kept"):
        write_update(run(), delta(1))
