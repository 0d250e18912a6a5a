from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import lorax
from lorax.adapters.install import find_targets, install
from lorax.errors import UserError

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama_classifier": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES)),
    "bert_classifier": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    ),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_all_linear_is_what_peft_adapts(name):
    with torch.device("meta"):
        ours = find_targets(MODELS[name]())
    task = "SEQ_CLS" if "classifier" in name else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_peft_model(MODELS[name](), LoraConfig(target_modules="all-linear", task_type=task))
    prefix = "base_model.model."
    adapted = {n.removeprefix(prefix) for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert list(ours) == sorted(adapted)


def test_the_ways_to_name_targets():
    model = MODELS["llama"]()
    every = find_targets(model)
    assert list(find_targets(model, ["q_proj", "self_attn.v_proj"])) == sorted(
        name for name in every if name.endswith(("q_proj", "v_proj"))
    )
    assert list(find_targets(model, r"model\.layers\.1\..*")) == sorted(n for n in every if ".1." in n)
    assert find_targets(model, "q_proj|v_proj") == find_targets(model, ["q_proj", "v_proj"])
    assert "lm_head" in find_targets(model, ["lm_head"])
    mlps = ["model.layers.0.mlp", "model.layers.1.mlp"]
    for targets in ("all-linear", ".*", ["up_proj", "q_proj"]):
        assert not any("mlp" in name for name in find_targets(model, targets, head=mlps))


@pytest.mark.parametrize(
    "targets, line",
    [
        (["q_porj"], "target 'q_porj' matches no layer; did you mean 'q_proj'"),
        ("q_porj", "did you mean 'q_proj'"),
        (["embed_tokens"], "target 'embed_tokens' is Embedding, not a linear layer"),
        ("q_proj(", "is not a regular expression"),
        ([], "leave no layer to adapt"),
        (["q_proj", "all-linear"], "stands alone"),
    ],
)
def test_targets_that_match_nothing(targets, line):
    with pytest.raises(UserError) as caught:
        find_targets(MODELS["llama"](), targets)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def tied():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9, bias=False))
    model[1].weight = model[0].weight
    return model.double()


def test_tied_weights_are_carried_but_never_written(make, shake):
    model = tied()
    targets = find_targets(model)
    with pytest.raises(UserError, match="cannot fold into 1: its weight is shared with 0.weight"):
        install(model, make("pissa", targets), recenter="fold")
    assert type(model[1]) is nn.Linear and model[0].weight.requires_grad
    x = torch.arange(5)
    want = model(x)
    adapters = shake(install(model, make("pissa", targets)))
    assert not torch.equal(model(x), want)
    with pytest.raises(UserError, match="cannot merge 1: its weight is shared"):
        adapters.merge()
    adapters.detach()
    assert torch.equal(model(x), want) and model[1].weight is model[0].weight


@pytest.mark.parametrize("recenter", ["carry", "fold"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detach_restores_everything(kind, make, shake, recenter, dtype):
    model = MODELS["gpt2"]().to(dtype).eval()
    model.transformer.wte.weight.requires_grad_(False)
    state, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    modules = [(name, type(module)) for name, module in model.named_modules()]
    own = set(model.__dict__)
    ids = torch.arange(6)[None]
    want = model(ids).logits
    adapters = shake(install(model, make(kind, find_targets(model)), recenter=recenter))
    assert set(state) <= set(model.state_dict())
    moved = model(ids).logits
    with adapters.disabled():
        assert torch.equal(model(ids).logits, want)
    assert not torch.equal(moved, want)
    adapters.merge()
    adapters.detach()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [(name, type(module)) for name, module in model.named_modules()] == modules and set(model.__dict__) == own


def test_a_module_in_two_places_stays_one(net, make, shake):
    shared = nn.Linear(6, 6, dtype=torch.float64)
    model = nn.ModuleDict({"a": shared, "b": shared})
    adapters = shake(install(model, make("lora", find_targets(model))))
    assert model["a"] is model["b"] and adapters.names() == ["a"]
    adapters.merge().unmerge()
    assert adapters.detach()["b"] is shared


def test_hooks_of_the_replaced_module_stay(net, make):
    model, seen = net(), []
    model.up.register_forward_hook(lambda *_: seen.append(1))
    install(model, make("lora", find_targets(model)))
    model(torch.randn(1, 6, dtype=torch.float64))
    assert seen == [1]


def test_what_cannot_be_installed(net, make):
    model = net()
    good = make("lora", find_targets(model))
    cases = [
        (good, {"recenter": "folded"}, "did you mean 'fold'"),
        ([good], {"recenter": "fold"}, "lanes cannot share it"),
        ({"upp": good["up"]}, {}, "no layer 'upp'; did you mean 'up'"),
        ({"up": good["down"]}, {}, "up: B"),
        ({}, {}, "no layer to adapt"),
        (good, {"dropout": 1.0}, "dropout=1.0"),
    ]
    for factors, options, line in cases:
        with pytest.raises(UserError) as caught:
            install(model, factors, **options)
        assert line in str(caught.value)
        assert all(p.requires_grad for p in model.parameters()) and type(model.up) is nn.Linear
    install(model, good)
    for again in (lambda: find_targets(model), lambda: install(model, good)):
        with pytest.raises(UserError, match="has adapters already"):
            again()


def test_dropout_on_a_folded_base_warns(net, make):
    model = net()
    with pytest.warns(UserWarning, match="step 0 is no longer the base"):
        install(model, make("pissa", find_targets(model)), recenter="fold", dropout=0.1)


def test_train_switches_only_these_adapters(net, make):
    model = net().eval()
    adapters = install(model, make("lora", find_targets(model)), dropout=0.5).train()
    assert not model.training and all(lane.training for lane in adapters.layer_adapters().values())
    adapters.eval()
    assert not any(lane.training for lane in adapters.layer_adapters().values())
    assert "trainable" in repr(adapters) and "rank=3" in str(model)


@pytest.mark.parametrize("init", ["pissa", "full", "none"])
def test_what_was_detached_is_not_saved(net, init, tmp_path):
    model = net()
    arm = lorax.attach(model, init) if init != "pissa" else lorax.attach(model, init, rank=2)
    arm.detach()
    for write in (arm.save, arm.export_merged, arm.export_peft):
        with pytest.raises(UserError, match=r"detached|no low-rank form"):
            write(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [] and arm.detach() is model
    if init == "pissa":
        with pytest.raises(UserError, match="cannot merge: these adapters were detached"):
            arm.merge()


@pytest.mark.parametrize("recenter", ["carry", "fold"])
def test_a_callers_autocast_does_not_round_what_is_written(net, make, shake, recenter):
    with torch.autocast("cpu", torch.bfloat16):
        model = net(torch.float32)
        adapters = shake(install(model, make("pissa", find_targets(model)), recenter=recenter))
        deltas, frozen = adapters.delta(), adapters.frozen_weight("up")
        adapters.merge()
    twin = net(torch.float32)
    wanted = shake(install(twin, make("pissa", find_targets(twin)), recenter=recenter))
    assert all(torch.equal(deltas[name], value) for name, value in wanted.delta().items())
    assert torch.equal(frozen, wanted.frozen_weight("up"))
    wanted.merge()
    assert all(torch.equal(model.get_submodule(name).weight, twin.get_submodule(name).weight) for name in deltas)


def test_shapes_can_be_had_on_the_meta_device(net):
    with torch.device("meta"):
        model = net(torch.float32)
    with pytest.raises(UserError, match="layer down: its weight is on the meta device, without values"):
        lorax.attach(model, "pissa", rank=2)
    lorax.attach(model, "lora", rank=2)
    assert model(torch.zeros(3, 6, device="meta")).shape == (3, 5)
