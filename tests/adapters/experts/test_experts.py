"""Experts held as one 3-D parameter: the plain model whose experts' weights had W' - W0 added is the oracle."""

import copy
import warnings

import peft
import pytest
import torch
import transformers as T
from torch import nn

import lorax
from lorax.adapters.install import find_targets
from lorax.adapters.kinds import shape_of
from lorax.errors import UserError

SIZES = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
MODELS = {
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2)),
    "gptoss": lambda: T.GptOssForCausalLM(
        T.GptOssConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2, layer_types=["full_attention"])
    ),
    "llama4": lambda: T.Llama4ForCausalLM(
        T.Llama4TextConfig(
            **SIZES, num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=24, interleave_moe_layer_step=1
        )
    ),
}
TRANSPOSED = {"gptoss", "llama4"}
EXPERTS = ["gate_up_proj", "experts.down_proj"]
METHODS = ["lora", "pissa", "milora", "lora_xs", "svft", "lora_ga", "dylora", "adalora", "lora_plus"]
METHODS += ["svf", "olora", "lora_fa", "miss", "orthogonal"]
FIRST = [("lora", "mixtral"), ("lora", "llama4"), ("pissa", "gptoss"), ("svft", "mixtral"), ("lora_ga", "gptoss")]
CASES = [
    pytest.param(init, name, marks=() if (init, name) in FIRST else pytest.mark.slow)
    for init in METHODS
    for name in MODELS
]


def made(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    if dtype == torch.float64:
        model.config._experts_implementation = "eager"  # transformers' grouped products take no float64
    return model


def batch(rows=4):
    ids = torch.randint(3, 90, (rows, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def logits(model, rows=4):
    return model(**batch(rows)).logits


def attach(model, init="lora", targets=EXPERTS, **options):
    fields = {"zeta": 1.0} if init == "lora_ga" else {}
    return lorax.attach(model, init=init, rank=2, targets=targets, batches=[batch()], **fields, **options)


def shaken(adapters, seed=1):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapters.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype))
    return adapters


@torch.no_grad()
def with_updates(name, adapters, dtype=torch.float64):
    """The plain model whose weights had the adapters' updates added."""
    plain = made(name, dtype)
    for layer, adapter in adapters.layer_adapters().items():
        parameter, _, index = layer.rpartition(".")
        if index.isdigit():
            change = adapter.delta()
            plain.get_parameter(parameter)[int(index)] += change.mT if name in TRANSPOSED else change
        else:
            plain.get_submodule(layer).weight += adapter.delta()
    return plain


@pytest.mark.filterwarnings("ignore:init=.* acts while it trains")
@pytest.mark.parametrize(("init", "name"), CASES)
def test_every_method_at_experts(init, name, tmp_path):
    model = made(name)
    base, state = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    adapters = attach(model, init)
    assert torch.equal(logits(model), base)  # step 0
    shaken(adapters)
    y, plain = logits(model), with_updates(name, adapters)
    torch.testing.assert_close(y, logits(plain), rtol=1e-12, atol=1e-12)
    assert float((y - base).abs().max()) > 1e-5
    assert [key for key in model.state_dict() if ".lanes." not in key] == list(state)
    # gradients: of the experts' weights, W' = W0 + eta B M A
    model(**batch()).loss.backward()
    for weight in (parameter for key, parameter in plain.named_parameters() if parameter.ndim == 3):
        weight.requires_grad_(True)
    plain(**batch()).loss.backward()
    used = 0
    for layer, adapter in adapters.layer_adapters().items():
        parameter, _, index = layer.rpartition(".")
        G = plain.get_parameter(parameter).grad[int(index)]
        G = (G.mT if name in TRANSPOSED else G).detach()
        trained = adapter.trained()
        expected = torch.autograd.grad((G * adapter.delta()).sum(), list(trained.values()))
        torch.testing.assert_close([p.grad for p in trained.values()], list(expected), rtol=1e-8, atol=1e-12)
        used += bool(G.abs().sum() > 0)
    assert used >= 4
    with adapters.disabled():
        assert torch.equal(logits(model), base)
    adapters.save(tmp_path / "a", quiet=True)
    again = made(name)
    loaded = lorax.load(again, tmp_path / "a")
    assert torch.equal(logits(again), y) and loaded.count_trainable() == adapters.count_trainable()
    adapters.merge()
    torch.testing.assert_close(logits(model), y, rtol=1e-12, atol=1e-12)
    adapters.detach()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes(name):
    """Each expert is (out, in), whichever way round it is stored; named by its parameter, or alone."""
    model = made(name)
    owner = "model.layers.0." + {"mixtral": "mlp", "gptoss": "mlp", "llama4": "feed_forward"}[name] + ".experts"
    count = 2 if name == "llama4" else 3
    both = [f"{owner}.{key}.{e}" for key in ("down_proj", "gate_up_proj") for e in range(count)]
    everything = find_targets(model)
    assert [key for key in everything if ".experts." in key] == both
    assert shape_of(everything[f"{owner}.gate_up_proj.0"]) == (48, 16)
    assert shape_of(everything[f"{owner}.down_proj.0"]) == (16, 24)
    for targets in (["gate_up_proj"], ["experts.gate_up_proj"], [f"{owner}.gate_up_proj"], r"experts\.gate_up_proj"):
        assert list(find_targets(model, targets)) == both[count:]
    assert list(find_targets(model, [f"{owner}.gate_up_proj.1"])) == [f"{owner}.gate_up_proj.1"]
    assert not any(key.startswith(owner) for key in find_targets(model, head=[owner]))
    with pytest.raises(UserError, match=r"target 'gate_up_prj' matches no layer.*gate_up_proj"):
        find_targets(model, ["gate_up_prj"])


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["mixtral", "gptoss"])
def test_whichever_way_transformers_computes(name, implementation):
    model = made(name, torch.float32)
    model.config._experts_implementation = implementation
    adapters = shaken(attach(model, "pissa"))
    torch.testing.assert_close(logits(model), logits(with_updates(name, adapters, torch.float32)), rtol=1e-5, atol=1e-6)
    model(**batch()).loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum()) for p in adapters.parameters())


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_step_zero_under_autocast_is_the_base_bit_for_bit(implementation):
    model = made("mixtral", torch.float32)
    model.config._experts_implementation = implementation
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base = logits(model)
        adapters = attach(model, "pissa")
        assert torch.equal(logits(model), base)
        shaken(adapters)
        expected = logits(with_updates("mixtral", adapters, torch.float32))
        torch.testing.assert_close(logits(model), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["mixtral", "gptoss"])
def test_as_pefts_target_parameters(name):
    """The same factors in stock PEFT give the same output."""
    model = made(name, torch.float32)
    adapters = shaken(attach(model))
    stock = made(name, torch.float32)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=[], target_parameters=parameters)
    stock = peft.get_peft_model(stock, config)
    for wrapper in (m for m in stock.modules() if isinstance(m, peft.tuners.lora.layer.ParamWrapper)):
        key = f"model.layers.0.mlp.experts.{wrapper.parameter_name}"
        factors = [adapters.factors()[f"{key}.{e}"] for e in range(3)]
        wrapper.lora_A["default"].weight.data = torch.cat([f.A for f in factors])
        wrapper.lora_B["default"].weight.data = torch.stack([f.eta * f.B for f in factors], -1).flatten(1)
    torch.testing.assert_close(logits(model), logits(stock), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize(
    ("name", "init", "targets"),
    [
        ("mixtral", "pissa", "all-linear"),
        ("gptoss", "lora", EXPERTS),
        ("llama4", "svft", ["q_proj", *EXPERTS]),
        ("gptoss", "lora_xs", ["model.layers.0.mlp.experts.down_proj.1", "o_proj"]),
    ],
)
def test_exported_to_stock_peft(name, init, targets, tmp_path):
    """Experts travel as `target_parameters`; one expert alone leaves the others as they are."""
    model = made(name, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Llama-4's router has a forward of its own
        adapters = shaken(attach(model, init, targets=targets))
    said = adapters.export_peft(tmp_path)
    assert set(said["rank"]) == set(adapters.names())
    stock = peft.PeftModel.from_pretrained(made(name, torch.float32), tmp_path).eval()
    torch.testing.assert_close(logits(stock), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "milora"])
def test_fold(init):
    model = made("gptoss")
    base, state = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    adapters = attach(model, init, recenter="fold")
    torch.testing.assert_close(logits(model), base, rtol=1e-6, atol=1e-6)
    shaken(adapters)
    y = logits(model)
    torch.testing.assert_close(y, logits(with_updates("gptoss", adapters)), rtol=1e-6, atol=1e-6)
    adapters.merge()
    torch.testing.assert_close(logits(model), y)
    with adapters.disabled():
        assert torch.equal(logits(model), base)
    adapters.detach()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_all_linear_with_experts_trains_and_is_exported_merged(tmp_path):
    model = made("mixtral", torch.float32)
    adapters = attach(model, "pissa", targets="all-linear")
    assert len(adapters.names()) == 4 + 6
    optimiser, losses = torch.optim.AdamW(adapters.parameters(), lr=1e-2), []
    for _ in range(4):
        optimiser.zero_grad()
        loss = model(**batch()).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    y = logits(model)
    adapters.export_merged(tmp_path)
    assert torch.equal(logits(model), y)
    plain = T.MixtralForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(plain), y, rtol=1e-5, atol=1e-5)
    assert [name for name in plain.state_dict() if "lanes" in name] == []


def test_lanes_share_the_experts():
    """Two runs on one base: each lane's rows as its own run gives them; a batch takes blocks."""
    from lorax.adapters.install import install
    from lorax.api import make_factors
    from lorax.initializers.registry import build

    model = made("mixtral")
    inits = [build(name, shared={"rank": 2}) for name in ("lora", "pissa")]
    plans = [make_factors(model, init, EXPERTS, seed=seed) for seed, init in enumerate(inits)]
    handles = install(model, plans)
    for seed, handle in enumerate(handles):
        shaken(handle, seed)
    y = logits(model)
    expected = [logits(with_updates("mixtral", handle)) for handle in handles]
    torch.testing.assert_close(y[:2], expected[0][:2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y[2:], expected[1][2:], rtol=1e-12, atol=1e-12)
    model(**batch()).loss.backward()
    assert all(p.grad is not None for handle in handles for p in handle.parameters())
    with handles[0].pack.active([1]):
        torch.testing.assert_close(logits(model), expected[1], rtol=1e-12, atol=1e-12)
    with handles[0].pack.routed(torch.tensor([0, 1, 1, 0])), pytest.raises(UserError, match="equal blocks, not routed"):
        logits(model)
    handles[0].detach()
    torch.testing.assert_close(logits(model), expected[1], rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="Llama4TextExperts sorts its rows by expert"):
        install(made("llama4"), [make_factors(made("llama4"), inits[0], EXPERTS)] * 2)


def test_factors_that_do_not_change_are_applied_once():
    model = made("mixtral")
    adapters = shaken(attach(model))
    with torch.no_grad(), adapters.pack.frozen_factors():
        first, second = logits(model), logits(model)
        site = model.model.layers[0].mlp.experts.forward
        assert len(site._kept) == 2 and torch.equal(first, second)
    shaken(adapters, seed=2)
    torch.testing.assert_close(logits(model), logits(with_updates("mixtral", adapters)), rtol=1e-12, atol=1e-12)
    assert not site._kept


def test_a_copy_a_move_and_gradient_checkpointing():
    model = made("gptoss")
    adapters = shaken(attach(model, "pissa"))
    y, twin = logits(model), copy.deepcopy(model)
    model.train()
    model.gradient_checkpointing_enable()
    model(**batch()).loss.backward()
    model.gradient_checkpointing_disable()
    kept = [p.grad.clone() for p in adapters.parameters()]
    for p in adapters.parameters():
        p.grad = None
    model(**batch()).loss.backward()
    torch.testing.assert_close(kept, [p.grad for p in adapters.parameters()])
    model.eval()
    shaken(adapters, 5)
    torch.testing.assert_close(logits(twin), y)
    for p in (p for p in model.parameters() if p.requires_grad):
        assert p.dtype == torch.float64
    model.to(torch.float32).config._experts_implementation = "eager"
    assert logits(model).dtype == torch.float32


@pytest.mark.parametrize("targets", [["gate_up_proj"], "all-linear"])
def test_full_fine_tuning_of_experts(targets, tmp_path):
    model = made("mixtral")
    base, y0 = made("mixtral"), logits(model)
    full = lorax.attach(model, init="full", targets=targets)
    if targets != "all-linear":
        assert list(full.named_parameters()) == ["model.layers.0.mlp.experts.gate_up_proj"]
    layer = "model.layers.0.mlp.experts.gate_up_proj.1"
    with torch.no_grad():
        for p in full.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype) * 0.1)
    before, now = (m.model.layers[0].mlp.experts.gate_up_proj[1].detach() for m in (base, model))
    torch.testing.assert_close(full.delta([layer])[layer], (now - before).float(), rtol=1e-5, atol=1e-6)
    full.save(tmp_path, quiet=True)
    y = logits(model)
    again = lorax.load(base, tmp_path)
    assert torch.equal(logits(base), y) and list(again.named_parameters()) == list(full.named_parameters())
    full.detach()
    assert torch.equal(logits(model), y0)


def test_what_is_not_possible_is_said_by_name(tmp_path):
    model = made("mixtral")
    with pytest.raises(UserError, match=r"dropout=0.1 at model.layers.0.mlp.experts.down_proj.0: .* use dropout=0"):
        attach(model, dropout=0.1)
    assert type(model.model.layers[0].mlp.experts).__name__ == "MixtralExperts" and ".lanes." not in str(
        list(model.state_dict())
    )
    adapters = attach(model)
    with pytest.raises(UserError, match=r"model.layers.0.mlp.experts.gate_up_proj.2 is one expert's weight"):
        adapters.layer("model.layers.0.mlp.experts.gate_up_proj.2")(torch.zeros(1, 16))
    adapters.detach()
    with pytest.raises(
        UserError, match=r"target 'mlp.gate.weight' is a parameter of MixtralTopKRouter, float64 \(3, 16"
    ):
        attach(model, targets=["mlp.gate.weight"])
    with pytest.raises(UserError, match="is MixtralExperts, not a linear layer; inside it: down_proj, gate_up_proj$"):
        attach(model, targets=["experts"])
    tied = made("mixtral")
    tied.model.layers[0].mlp.copy = nn.Linear(1, 1)
    tied.model.layers[0].mlp.copy.weight = tied.model.layers[0].mlp.experts.down_proj
    adapters = attach(tied)
    with pytest.raises(UserError, match="its weight is shared with model.layers.0.mlp.copy.weight"):
        adapters.merge()


class _Own(nn.Module):
    """Experts of one's own, read as W[e] x; `mixed` in a way that the code does not show."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 5, 4))
        self.mixed = nn.Parameter(torch.randn(2, 4, 5))

    def forward(self, x):
        halves = [nn.functional.linear(part, self.up[e]) for e, part in enumerate(x.chunk(2))]
        return torch.einsum("eto,eio->eti", torch.stack(halves), self.mixed).flatten(0, 1)


class Experts(_Own):
    """The same by a name that says what it is."""

    forward = _Own.forward


def test_experts_of_ones_own():
    named, known, x = (
        nn.Sequential(nn.Linear(4, 4), _Own()),
        nn.Sequential(nn.Linear(4, 4), Experts()),
        torch.ones(4, 4),
    )
    assert list(find_targets(named)) == ["0"] and list(find_targets(known)) == ["0", "1.up.0", "1.up.1"]
    assert list(find_targets(named, ["up"])) == ["1.up.0", "1.up.1"]
    with pytest.raises(UserError, match=r"'mixed' is a parameter of _Own, float32 \(2, 4, 5\): its forward does not"):
        find_targets(named, ["mixed"])
    before = named(x)
    adapters = shaken(lorax.attach(named, rank=2, targets=["1.up.1"]))  # one expert alone
    delta = adapters.delta()["1.up.1"]
    y = named(x)
    adapters.detach()
    assert torch.equal(y[:2], before[:2])
    with torch.no_grad():
        named[1].up[1] += delta
    torch.testing.assert_close(named(x), y)
