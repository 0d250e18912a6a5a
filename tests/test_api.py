"""`attach`, `make_factors` and `load`: equal to PEFT where it has the method, and one line for each mistake."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import lorax
from lorax.initializers.registry import build, get


def llama(seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )  # fmt: skip
    )


def batch(seed=1):
    ids = torch.randint(64, (4, 10), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def train(model, parameters, steps, lr=3e-3, repeat=False):
    optimiser = torch.optim.AdamW(parameters, lr=lr)
    losses = []
    for step in range(steps):
        optimiser.zero_grad()
        loss = model(**batch(0 if repeat else step)).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("init,groups", [("lora", [3e-3]), ("lora_plus", [4.8e-2, 3e-3]), ("full", [3e-3])])
def test_own_loops_get_the_methods_rates_and_rule_also_after_a_load(init, groups, tmp_path):
    model = nn.Sequential(nn.Linear(8, 6))
    adapters = lorax.attach(model, init, rank=2)
    assert [group["lr"] for group in adapters.parameter_groups(3e-3)] == pytest.approx(groups)
    held = [parameter for group in adapters.parameter_groups(3e-3) for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in adapters.parameters()} and adapters.rule is None
    adapters.save(tmp_path, quiet=True)
    adapters.detach()
    again = lorax.load(model, tmp_path)
    assert [group["lr"] for group in again.parameter_groups(3e-3)] == pytest.approx(groups)


def test_a_method_that_acts_while_it_trains_says_so_and_hands_its_rule(tmp_path):
    model = nn.Sequential(nn.Linear(8, 6))
    with pytest.warns(UserWarning, match="init=adalora acts while it trains"):
        adapters = lorax.attach(model, "adalora", rank=2)
    adapters.save(tmp_path, quiet=True)
    adapters.detach()
    assert type(lorax.load(model, tmp_path).rule) is type(adapters.rule)


def test_plain_lora_is_pefts_for_fifty_adamw_steps():
    model = llama().eval()
    adapters = lorax.attach(model, rank=4, alpha=8)
    given = adapters.factors()
    other = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")).eval()
    layers = {name: module for name, module in other.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert sorted(layers) == adapters.names()
    with torch.no_grad():
        for name, module in layers.items():
            module.lora_A["default"].weight.copy_(given[name].A)
            assert module.scaling["default"] == adapters.eta()[name]
    ours = train(model, adapters.parameters(), 50)
    theirs = train(other, [p for p in other.parameters() if p.requires_grad], 50)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-4)
    for name, delta in adapters.delta().items():
        torch.testing.assert_close(delta, layers[name].get_delta_weight("default"), rtol=2e-2, atol=2e-4)


def test_pissa_has_pefts_principal_subspace_and_size():
    given = lorax.attach(llama(), init="pissa", rank=4).factors()
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights="pissa")
    other = get_peft_model(llama(), config)
    for name, module in other.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            theirs = module.lora_B["default"].weight @ module.lora_A["default"].weight
            torch.testing.assert_close(given[name].update(), theirs.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "init", [name for name in lorax.names() if get(name).changes_layers and not get(name).takes_saved]
)
def test_every_method_learns_and_comes_off_again(init):
    model = llama()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapters = lorax.attach(model, init=init, rank=4, batches=[batch(0)])
    losses = train(model, adapters.parameters(), 10, lr=3e-3, repeat=True)
    assert losses[-1] < losses[0] - 1e-3
    adapters.detach()
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_none_trains_nothing_and_full_what_is_named():
    model = llama()
    arm = lorax.attach(model, init="none")
    assert arm.parameters() == [] and arm.count_trainable() == 0
    arm.detach()
    total = sum(p.numel() for p in model.parameters())
    arm = lorax.attach(model, init="full")
    assert arm.count_trainable() == total
    arm.detach()
    assert lorax.attach(model, init="full", targets=["q_proj"]).count_trainable() == 2 * 32 * 32


def test_an_instance_is_as_good_as_a_name():
    x = batch()["input_ids"]
    outputs = []
    for init, fields in (("pissa", {"rank": 3, "alpha": 6}), (build("pissa", shared={"rank": 3, "alpha": 6}), {})):
        model = llama()
        adapters = lorax.attach(model, init=init, **fields)
        train(model, adapters.parameters(), 2)
        outputs.append(model(x).logits)
    assert torch.equal(*outputs)
    with pytest.raises(lorax.UserError, match="instance with its own fields; svd"):
        lorax.attach(llama(), init=build("pissa"), svd="exact")


def test_a_cache_changes_nothing(tmp_path):
    for init in ("pissa", "svft", "lora_ga"):
        states = []
        for cache in (None, tmp_path, tmp_path):
            adapters = lorax.attach(llama(), init=init, rank=4, batches=[batch()], cache=cache)
            states.append(adapters.state_dict())
        for other in states[1:]:
            assert all(torch.equal(states[0][key], other[key]) for key in other)


BAD = [
    ({"init": "lorra"}, "init=lorra is unknown: did you mean 'lora'"),
    ({"init": "pissa", "zetta": 1}, "init=pissa has no field 'zetta'"),
    ({"rank": 33}, r"layer model.layers.0.\S+: rank=33 exceeds"),
    ({"init": "lora_ga", "rank": 17, "batches": []}, r"layer model.layers.0.\S+: lora_ga needs 2 rank"),
    ({"init": "lora_ga", "rank": 2}, "give batches="),
    ({"init": "lora_ga", "rank": 2, "batches": []}, "no batch with a counted label"),
    ({"targets": ["q_prj"]}, "q_prj"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"recenter": "carried"}, "carry"),
]


@pytest.mark.parametrize("fields,line", BAD)
def test_bad_input_is_one_clear_line_and_leaves_the_model_alone(fields, line):
    model = llama()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(lorax.UserError, match=line) as caught:
        lorax.attach(model, **fields)
    assert "\n" not in str(caught.value)
    assert kinds == [type(module) for module in model.modules()]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_save_and_load_repeat_no_decomposition(tmp_path, monkeypatch):
    model, x = llama(), batch()["input_ids"]
    adapters = lorax.attach(model, init="lora_ga", rank=4, batches=[batch()])
    train(model, adapters.parameters(), 3)
    adapters.save(tmp_path / "a")
    monkeypatch.setattr("lorax.probing.svd.full", None)
    again = llama()
    loaded = lorax.load(again, tmp_path / "a")
    assert torch.equal(again(x).logits, model(x).logits)
    assert loaded.report() == adapters.report()
    with pytest.raises(lorax.UserError):
        lorax.load(llama(seed=5), tmp_path / "a")


def test_a_stored_method_that_cannot_be_built_changes_nothing(tmp_path):
    """The digest fits; the method that the header names does not take its fields."""
    model = llama()
    adapters = lorax.attach(model, init="lora", rank=2)
    model.lm_head.weight.requires_grad_(True).data.add_(1)
    for init in ({"name": "lora", "rnak": 2}, {"name": "lora", "rank": "two"}):
        adapters.info["init"] = init
        adapters.save(tmp_path / "a", quiet=True)
        fresh, base = llama(), llama().state_dict()
        with pytest.raises(lorax.UserError, match="init=lora of the saved adapter cannot be built"):
            lorax.load(fresh, tmp_path / "a")
        assert fresh.state_dict().keys() == base.keys()
        assert all(torch.equal(value, base[key]) for key, value in fresh.state_dict().items())
    for init in ("lora", ["lora"], {"name": ["lora"]}, {"name": "of another package"}):
        adapters.info["init"] = init
        adapters.save(tmp_path / "a", quiet=True)
        assert lorax.load(llama(), tmp_path / "a").rates == {}


def test_works_on_a_plain_module_with_a_shared_weight():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    model, x = Tied(), torch.randn(5, 12)
    base = model(x)
    adapters = lorax.attach(model, init="lora_ga", rank=3, loss=lambda m, b: m(b).square().mean(), batches=[x])
    assert torch.equal(model(x), base) and adapters.names() == ["a", "b"]
    with pytest.raises(lorax.UserError):
        adapters.merge()


@pytest.mark.parametrize(
    "given,line",
    [
        ({"targets": None}, "targets=None: 'all-linear', a list"),
        ({"targets": 3}, "targets=3: 'all-linear', a list"),
        ({"targets": ["0", 1]}, r"targets=\['0', 1\]: 'all-linear', a list"),
        ({"dropout": None}, "dropout=None: a number"),
        ({"dropout": "0.1"}, "dropout='0.1': a number"),
        ({"cache": 3}, "cache=3: a folder or a Cache"),
        ({"train_head": 1}, "train_head=1: True, False, None or a list"),
        ({"init": None}, "init=None: a registered name"),
        ({"init": get("pissa")}, "init=the class PiSSA: a registered name"),
        ({"init": build("pissa"), "zeta": 1}, "zeta cannot be given beside it"),
    ],
)
def test_an_argument_of_another_type_is_one_line(given, line):
    model = nn.Sequential(nn.Linear(8, 6))
    with pytest.raises(lorax.UserError, match=line) as caught:
        lorax.attach(model, **{"rank": 2, "init": "pissa"} | given)
    assert len(str(caught.value)) <= 300 and model[0].weight.requires_grad and type(model[0]) is nn.Linear


@pytest.mark.parametrize("model", [None, "gpt2", [nn.Linear(8, 8)]])
def test_what_is_no_module_is_one_line(model, tmp_path):
    with pytest.raises(lorax.UserError, match=f"model: an nn.Module is needed, not {type(model).__name__}"):
        lorax.attach(model, rank=2)
    lorax.attach(nn.Sequential(nn.Linear(8, 8)), rank=2).save(tmp_path, quiet=True)
    with pytest.raises(lorax.UserError, match="model: an nn.Module is needed"):
        lorax.load(model, tmp_path)


def test_a_model_that_is_itself_a_layer_says_so():
    with pytest.raises(lorax.UserError, match=r"the model is itself a layer, .* put it in an nn.Sequential"):
        lorax.attach(nn.Linear(8, 8), rank=2)
