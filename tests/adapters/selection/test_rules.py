"""What PEFT's users set beside the targets: the same layers, ranks, alphas and trained tensors as stock PEFT."""

import peft
import pytest
import torch
from torch import nn
from zoo import ZOO

import lorax
from lorax.adapters.selection.rules import Rules
from lorax.errors import UserError

QV = ["q_proj", "v_proj"]
CASES = {
    "excluded by suffix": ("qwen3", {"target_modules": QV, "exclude_modules": ["1.self_attn.q_proj"]}),
    "excluded by expression": ("qwen3", {"target_modules": QV, "exclude_modules": r".*\.0\..*"}),
    "excluded in full": ("qwen3", {"target_modules": QV, "exclude_modules": ["model.layers.0.self_attn.v_proj"]}),
    "all but one kind": ("qwen3", {"target_modules": "all-linear", "exclude_modules": ["o_proj"]}),
    "one block": ("qwen3", {"target_modules": QV, "layers_to_transform": 1}),
    "blocks of one list": ("qwen3", {"target_modules": QV, "layers_to_transform": [0], "layers_pattern": "layers"}),
    "of a list of lists": ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": ["h"]}),
    "named in full stays": (
        "qwen3",
        {"target_modules": ["q_proj", "model.layers.0.self_attn.v_proj"], "layers_to_transform": [1]},
    ),
    "experts' number is not the block's": ("mixtral", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "rank by suffix": ("qwen3", {"target_modules": QV, "rank_pattern": {"q_proj": 2}}),
    "rank by expression, the first that matches": (
        "qwen3",
        {"target_modules": QV, "rank_pattern": {r"layers\.1\..*": 3, "q_proj": 2, ".*": 5}},
    ),
    "rank by anchored name": ("qwen3", {"target_modules": QV, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 7}}),
    "an end that is no whole word": ("qwen3", {"target_modules": QV, "rank_pattern": {".*_proj": 3}}),
    "alpha by suffix": ("qwen3", {"target_modules": QV, "alpha_pattern": {"v_proj": 24}}),
    "rank and alpha": (
        "gpt2",
        {"target_modules": ["c_attn", "c_fc"], "rank_pattern": {"c_fc": 2}, "alpha_pattern": {r"h\.0\..*": 3}},
    ),
    "rslora": ("qwen3", {"target_modules": QV, "rank_pattern": {"q_proj": 2}, "use_rslora": True}),
    "saved whole": ("qwen3", {"target_modules": QV, "modules_to_save": ["lm_head", "norm"]}),
    "saved whole, not adapted": ("qwen3", {"target_modules": QV, "modules_to_save": ["1.self_attn"]}),
    "a part of a name saved whole": ("qwen3", {"target_modules": QV, "modules_to_save": ["tokens"]}),
}


def theirs(model, config):
    """PEFT's layers, ranks and scales, and the trained tensors by lorax's names."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, fan_in_fan_out=False, **config))
    layers = {n: m for n, m in wrapped.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    trained = set()
    for name, parameter in wrapped.base_model.model.named_parameters():
        if parameter.requires_grad:
            name = name.replace(".modules_to_save.default", "").replace(".default.weight", "")
            trained.add((name.replace("lora_A", "A").replace("lora_B", "B"), tuple(parameter.shape)))
    return {n: (m.r["default"], m.scaling["default"]) for n, m in layers.items()}, trained


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_layers_ranks_scales_and_trained_tensors_are_pefts(case):
    architecture, config = CASES[case]
    layers, trained = theirs(ZOO[architecture]()[0], dict(config))
    ours = dict(config)
    targets, scaling = ours.pop("target_modules"), "rslora" if ours.pop("use_rslora", False) else "standard"
    adapters = lorax.attach(
        ZOO[architecture]()[0], rank=4, alpha=8, targets=targets, scaling=scaling, train_head=False, **ours
    )
    assert {name: (f.rank, f.eta) for name, f in adapters.factors().items()} == layers
    assert {(name, tuple(p.shape)) for name, p in adapters.named_parameters().items()} == trained


@pytest.mark.filterwarnings("ignore")
def test_exported_patterns_and_modules_give_stock_peft_the_same_logits(tmp_path):
    model, batch = ZOO["qwen3"]()
    adapters = lorax.attach(
        model, rank=4, targets=[*QV, "up_proj"], rank_pattern={"q_proj": 2, r"layers\.1\..*": 3}, train_head=False,
        alpha_pattern={"up_proj": 5}, exclude_modules=["0.mlp.up_proj"], modules_to_save=["lm_head"],
    )  # fmt: skip
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    expected = model(**batch).logits
    adapters.export_peft(tmp_path)
    adapters.detach()
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert sorted({config.r, *config.rank_pattern.values()}) == [2, 3, 4] and config.modules_to_save == ["lm_head"]
    loaded = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-5, atol=1e-5)


MISTAKES = [
    ({"rank_pattern": {"q_prj": 2}}, "rank_pattern: 'q_prj' matches no adapted layer; did you mean 'q_proj'"),
    ({"alpha_pattern": {"o_proj": 2}}, "alpha_pattern: 'o_proj' matches no adapted layer; did you mean"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern: q_proj=0: a whole number of at least 1"),
    ({"rank_pattern": {"q_proj": True}}, "rank_pattern: q_proj=True"),
    ({"rank_pattern": {"q_proj": 2.0}}, "rank_pattern: q_proj=2.0"),
    ({"rank_pattern": {"q_proj": 1000}}, "rank=1000 exceeds 32"),
    ({"rank_pattern": {"(": 2}}, r"rank_pattern: '\(' is not a regular expression"),
    ({"rank_pattern": ["q_proj"]}, "a mapping from layer names to numbers"),
    ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern: q_proj=nan: a finite number above 0"),
    ({"exclude_modules": ["v_prj"]}, "exclude_modules='v_prj' matches no module; did you mean 'v_proj'"),
    ({"exclude_modules": "v_proj"}, "matches no module; .*an expression is matched with the whole name"),
    ({"exclude_modules": ["self_attn"]}, "names no layer but a module around some.*name the layers: k_proj"),
    ({"exclude_modules": QV}, "leave no layer to adapt .*named in exclude_modules"),
    ({"exclude_modules": [3]}, r"exclude_modules=\[3\]: a list of names"),
    ({"layers_to_transform": [0, 9]}, "layers_to_transform=9: the targets lie in blocks 0 to 1"),
    ({"layers_to_transform": -1}, "whole numbers of at least 0"),
    ({"layers_to_transform": "0"}, "whole numbers of at least 0"),
    ({"layers_pattern": "layers"}, "needs layers_to_transform"),
    ({"layers_to_transform": 0, "layers_pattern": "layrs"}, "stands before no number.*did you mean 'layers'"),
    ({"targets": ".*q_proj", "layers_to_transform": 0}, "takes a list of targets"),
    (
        {"modules_to_save": ["lm_haed"]},
        "modules_to_save='lm_haed' matches no module with weights; did you mean 'lm_head'",
    ),
    ({"init": "adalora", "rank_pattern": {"q_proj": 2}}, "rank_pattern: init=adalora sets its layers' ranks itself"),
]


@pytest.mark.parametrize("given, line", MISTAKES, ids=lambda value: str(value)[:40])
def test_a_value_that_does_nothing_is_one_line_and_the_model_stays(given, line):
    model = ZOO["qwen3"]()[0]
    with pytest.raises(UserError, match=line) as caught:
        lorax.attach(model, **{"targets": QV, "train_head": False, **given})
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
    assert lorax.attach(model, targets=QV, train_head=False).detach() is model


def test_methods_take_ranks_and_alphas_by_layer_where_they_have_them():
    def net():
        torch.manual_seed(0)
        return nn.ModuleDict({"a": nn.Linear(12, 10), "b": nn.Linear(12, 10)})

    for init in ("lora", "pissa", "milora", "lora_xs", "svft"):
        adapters = lorax.attach(net(), init, rank=4, rank_pattern={"a": 2}, alpha_pattern={"b": 6.0})
        ranks = {name: f.rank for name, f in adapters.factors().items()}
        assert ranks == ({"a": 10, "b": 10} if init == "svft" else {"a": 2, "b": 4}), init
        if init == "pissa":  # alpha stays the run's where no pattern names it, as in PEFT
            assert adapters.eta() == {"a": 4 / 2, "b": 6 / 4}


def test_all_linear_serves_a_layer_too_small_for_the_rank_that_has_a_rank_of_its_own():
    net = nn.ModuleDict({"big": nn.Linear(12, 10), "small": nn.Linear(12, 3)})
    assert lorax.attach(net, rank=4, rank_pattern={"small": 2}).names() == ["big", "small"]


def test_given_keeps_the_order_of_patterns_and_leaves_out_what_is_not_set():
    first, second = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert Rules(rank_pattern=first).given() == {"rank_pattern": ["a:1", "b:2"]} != Rules(rank_pattern=second).given()
    alphas = [Rules(alpha_pattern={"a": alpha}).given()["alpha_pattern"] for alpha in (2, 2.0, 0.1234567, 0.1234568)]
    assert alphas == [["a:2"], ["a:2"], ["a:0.1234567"], ["a:0.1234568"]]
    assert Rules(exclude_modules=[], rank_pattern={}).given() == {} and not Rules()


def test_full_fine_tuning_of_named_layers_leaves_out_the_same():
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    assert lorax.attach(net, "full", targets=["a", "b"], exclude_modules=["b"]).names() == ["a"]
