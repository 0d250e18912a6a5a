"""What a run leaves out under "all-linear", and that arms of one rank adapt the same layers."""

from types import SimpleNamespace

import pytest

from lorax.adapters.selection.rules import Rules
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.running.preflight import check_ranks, smallest

SHAPES = {"gate": (1, 32), "kv": (6, 32), "q": (32, 32)}


@pytest.mark.parametrize("init", ["lora", "pissa", "lora_xs", "lora_ga"])
def test_all_linear_leaves_out_what_is_smaller_than_the_rank(init):
    method = build(init, shared={"rank": 3})
    config = SimpleNamespace(rank=3, targets="all-linear", rules=Rules)
    check_ranks(config, method, SHAPES)
    assert smallest(config, method) == 3
    with pytest.raises(UserError, match="layer gate"):
        check_ranks(SimpleNamespace(rank=3, targets=["gate", "q"], rules=Rules), method, SHAPES)


def test_a_layer_that_fits_the_rank_but_not_the_method_is_refused():
    config = SimpleNamespace(rank=4, targets="all-linear", rules=Rules)
    check_ranks(config, build("lora", shared={"rank": 4}), SHAPES)
    with pytest.raises(UserError, match="layer kv: lora_ga needs 2 rank"):
        check_ranks(config, build("lora_ga", shared={"rank": 4}), SHAPES)


def test_a_rank_beyond_every_layer_names_the_largest():
    with pytest.raises(UserError, match="layer q: rank=33 exceeds 32"):
        check_ranks(
            SimpleNamespace(rank=33, targets="all-linear", rules=Rules), build("lora", shared={"rank": 33}), SHAPES
        )
