"""Scale stability: the exponents that the methods' papers claim."""

import pytest

from lorax.diagnostics.scale import SETTINGS, main, scale_grid
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.probing.cache import Cache

RANKS, SHAPES = [2, 16], [(64, 64), (256, 64), (64, 256), (256, 256)]


def grid(name, tokens=64, draws=1, **shared):
    return scale_grid(lambda r: build(name, shared={"rank": r, **shared}), RANKS, SHAPES, tokens=tokens, draws=draws)


def test_lora_ga_forward_is_stable_in_rank_and_width():
    fit = grid("lora_ga", alpha=8, zeta=16)
    assert [row["forward_init"] for row in fit["rows"]] == pytest.approx([2] * 8, rel=1e-4)  # zeta / alpha
    assert fit["exponents"]["forward_init"] == pytest.approx({"r": 0, "m": 0, "n": 0}, abs=1e-3)
    assert fit["exponents"]["backward_init"] == pytest.approx({"r": 0, "m": 0.5, "n": -0.5}, abs=1e-3)
    backward = grid("lora_ga", alpha=8, zeta=16, zeta_rule="backward")["exponents"]["backward_init"]
    assert backward == pytest.approx({"r": 0, "m": 0, "n": 0}, abs=1e-3)


def test_rslora_keeps_the_step_alike_in_rank():
    # one token is the theorem's case; with more of them than ranks, their cross terms go like sqrt(r), not r
    standard = grid("lora", tokens=1, draws=30, alpha=16)["exponents"]
    stable = grid("lora", tokens=1, draws=30, alpha=16, scaling="rslora")["exponents"]
    assert standard["forward_init"] is None  # B = 0
    assert stable["forward_step"]["r"] - standard["forward_step"]["r"] == pytest.approx(1, abs=1e-3)
    assert abs(stable["forward_step"]["r"]) < 0.25 < abs(standard["forward_step"]["r"])


def test_a_cache_changes_no_number():
    def once(cache):
        return scale_grid(lambda r: build("lora_ga", shared={"rank": r}), [2, 4], [(16, 24)], draws=2, cache=cache)

    cache = Cache(None)
    assert once(None) == once(cache) == once(cache)


def test_the_command_measures_every_setting(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--quick"]) == 0
    out = capsys.readouterr().out
    assert all(f"| {label} " in out for label in SETTINGS) and not list(tmp_path.iterdir())


def test_what_does_not_vary_has_no_exponent():
    fit = scale_grid(lambda r: build("lora", shared={"rank": r}), [2, 4], [(16, 24)])
    assert fit["exponents"]["forward_step"]["m"] is None
    with pytest.raises(UserError, match="nothing to measure"):
        scale_grid(lambda r: build("lora"), [], [(8, 8)])
