"""Default learning rates follow eta and the factors' norms, and are 1 at each method's defaults."""

import pytest

from lorax.initializers.registry import build, get, names


@pytest.mark.parametrize("name", [name for name in names() if get(name).kind == "adapter"])
@pytest.mark.parametrize("rank", [2, 8, 32])
def test_defaults_are_the_reference_at_every_rank(name, rank):
    assert getattr(build(name, shared={"rank": rank}), "lr_factor", 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name, fields, factor",
    [
        ("lora", {"alpha": 32}, 1 / 2),
        ("lora", {"scaling": "rslora"}, 1 / 8**0.5),
        ("lora_xs", {"alpha": 32}, 1 / 4),
        ("pissa", {"alpha": 32}, 1 / 2),
        ("milora", {"alpha": 2}, 2),
        ("lora_ga", {"alpha": 32}, 1),
        ("lora_ga", {"zeta": 64}, 1 / 2),
        ("lora_ga", {"alpha": 32, "gamma": 16}, 1 / 2),
        ("svft", {}, 1),
        ("olora", {"alpha": 32}, 1 / 2),
        ("corda", {"alpha": 2}, 2),
        ("eva", {"alpha": 2}, 1 / 2),
        ("dora", {"alpha": 32}, 1 / 2),
        ("lora_one", {"alpha": 32}, 1 / 2),
        ("lora_one", {"gamma": 512}, 2),
        ("lora_one", {"scaling": "standard"}, 8**0.5),
    ],
)
def test_alpha_and_zeta_act_as_their_formulas_say(name, fields, factor):
    assert getattr(build(name, shared={"rank": 8} | fields), "lr_factor", 1.0) == pytest.approx(factor)
