"""What attach says: every weight is adapted, trained whole or left out for a reason, and the shares add up."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
import transformers as T  # noqa: N812
from torch import nn

import lorax
from lorax.adapters.selection.coverage import coverage_of
from lorax.adapters.targets import select
from lorax.initializers.registry import build, get, names

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(**more):
    return T.LlamaForCausalLM(T.LlamaConfig(**SIZES, **more))


def weights(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2)


@pytest.mark.parametrize("tied", [False, True])
def test_the_numbers_of_a_llama(tied):
    model = llama(tie_word_embeddings=tied)
    total, linear = weights(model), 2 * (4 * 8 * 8 + 3 * 8 * 12)
    adapters = lorax.attach(model, rank=2)
    found = adapters.coverage
    assert (found.layers, found.adapted, found.total) == (14, linear, total)
    assert found.share == pytest.approx(linear / total) and found.embeddings == pytest.approx(160 / total)
    assert found.left_out == {"lm_head": "output head", "model.embed_tokens": "embedding"}
    assert found.sizes == {"lm_head": 0 if tied else 160, "model.embed_tokens": 160}
    assert str(adapters).startswith("Adapters(14 layers, ") and f"({linear:,} of {total:,}, embeddings" in str(adapters)


def test_every_weight_has_its_place():
    config = T.Qwen2MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=6, shared_expert_intermediate_size=6,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = T.Qwen2MoeForCausalLM(config)
    with pytest.warns(UserWarning, match=r"left out model.layers.*shared_expert_gate") as caught:
        found = lorax.attach(model, rank=2).coverage
    assert found.adapted + sum(found.sizes.values()) == found.total and found.left_out.keys() == found.sizes.keys()
    reasons = found.reasons()
    gate = "min(m, n) = 1 is smaller than the rank needs (2)"
    assert [name.rpartition(".")[2] for name in reasons[gate]] == ["shared_expert_gate"] * 2
    assert [name.rpartition(".")[2] for name in reasons["a bare parameter, no layer (of Qwen2MoeTopKRouter)"]] == [
        "gate"
    ] * 2
    assert "experts held as one 3-D parameter" not in reasons and found.share > 0.8
    part = lorax.attach(T.Qwen2MoeForCausalLM(config), rank=2, targets=["layers.0.mlp.experts.down_proj.1"]).coverage
    assert (
        part.layers == 1
        and part.adapted == 6 * SIZES["hidden_size"]
        and part.adapted + sum(part.sizes.values()) == part.total
    )
    assert all(len(str(each.message)) <= 300 and "\n" not in str(each.message) for each in caught)


def test_nothing_is_warned_of_where_nothing_surprises_and_the_log_has_it_all(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="lorax"):
        warnings.simplefilter("error", UserWarning)
        lorax.attach(llama(), rank=2)
        lorax.attach(llama(), rank=2, targets=["q_proj"])
        lorax.attach(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(100, 100)), rank=2)  # less than 5 %
    assert caplog.messages[0].startswith("14 layers, ") and "left out lm_head" in caplog.messages[0]
    with pytest.warns(UserWarning, match=r"left out 0 \[50 %\]: no linear layer \(Conv2d\)"):
        lorax.attach(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Linear(8, 8)), rank=2)


def test_named_targets_leave_out_what_they_do_not_name():
    found = lorax.attach(llama(), rank=2, targets=["q_proj"]).coverage
    assert found.layers == 2 and found.adapted == 128
    assert set(found.left_out.values()) == {"not among the targets", "embedding"}


def test_the_other_arms_have_it_too(tmp_path):
    model = llama()
    arm = lorax.attach(model, init="full")
    assert (arm.coverage.share, arm.coverage.layers, arm.coverage.left_out) == (1.0, 15, {})
    arm.detach()
    assert lorax.attach(model, init="none").coverage.adapted == 0
    adapters = lorax.attach(model, rank=2, targets=["q_proj", "v_proj"])
    adapters.save(tmp_path, quiet=True)
    adapters.detach()
    assert lorax.load(model, tmp_path).coverage == adapters.coverage


def test_quantised_layers_of_an_unknown_kind_are_named():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 8, 4
            self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.uint8))

    found = coverage_of(nn.ModuleDict({"a": Packed(), "b": nn.Linear(8, 4)}), ["b"], {})
    assert found.left_out == {"a": "quantised, or a layer of an unknown kind (Packed)"} and found.share == 0.5


METHODS = [(name, {}) for name in names() if get(name).has_factors and get(name).adapts == "linear"]
METHODS += [("svft", {"pattern": "banded"}), ("adalora", {"init_rank": 4})]


@pytest.mark.parametrize("name, fields", METHODS)
def test_layers_too_small_for_the_rank(name, fields):
    """`smallest` is where `check` begins to accept; below it, "all-linear" leaves out and a name is refused."""
    method = build(name, shared={"rank": 3}, own=fields)
    size = method.smallest
    method.check("x", size, size + 1)
    sizes = {"gate": size - 1, "body": size} if size > 1 else {"body": 1}
    if size > 1:
        with pytest.raises(lorax.UserError, match="layer x"):
            method.check("x", size - 1, size + 1)
    model = nn.ModuleDict({key: nn.Linear(20, value) for key, value in sizes.items()})
    selection = select(model, smallest=size)
    assert list(selection.chosen) == ["body"] and list(selection.left_out) == [key for key in sizes if key != "body"]
    for targets in (["gate"], "gate|body", ["gate", "body"]) if size > 1 else ():
        with pytest.raises(lorax.UserError, match="layer gate"):
            lorax.attach(model, init=name, rank=3, targets=targets, batches=[], **fields)


def test_a_rank_beyond_every_layer_is_one_line_with_the_largest_bound():
    model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(9, 7), "c": nn.Linear(5, 5)})
    for init in names():
        method = get(init)
        if method.has_factors and method.adapts == "linear" and init not in ("svft", "svf", "vera", "from"):  # bounded
            with pytest.raises(lorax.UserError, match="layer b: .*7") as caught:
                lorax.attach(model, init=init, rank=100_000, batches=[])
            assert "\n" not in str(caught.value)


def test_heads_of_models_in_a_wrapper_are_left_out():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.value = llama(), nn.Linear(8, 2)

    selection = select(Wrapper())
    assert selection.left_out == {"inner.lm_head": "output head"} and "value" in selection.chosen


def test_experts_whose_parameter_is_called_weight_count_as_adapted():
    sizes = SIZES | {"num_key_value_heads": 2, "kv_channels": 4, "num_local_experts": 3, "num_experts_per_tok": 2}
    model = T.JetMoeForCausalLM(T.JetMoeConfig(**sizes))
    total = weights(model)
    found = lorax.attach(model, rank=2).coverage
    assert found.adapted + sum(found.sizes.values()) == found.total == total
    assert found.left_out == {"lm_head": "output head", "model.embed_tokens": "embedding"}
    part = lorax.attach(T.JetMoeForCausalLM(model.config), rank=2, targets=["0.mlp.output_linear.weight.1"]).coverage
    assert part.adapted == 8 * 12 and part.adapted + sum(part.sizes.values()) == part.total
