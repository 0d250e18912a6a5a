"""Experts in one parameter in stock PEFT: whichever way round they are stored, beside what else PEFT wraps."""

from __future__ import annotations

import copy
import json
import warnings

import peft as stock
import pytest
import torch
import transformers as T
from safetensors.torch import load_file
from torch import nn

from lorax.adapters.install import find_targets, install
from lorax.errors import UserError
from lorax.exports import example, peft
from lorax.exports.example import example_inputs, run
from tests.exports.mixtures import MODELS as DENSE
from tests.exports.mixtures import SIZES

GPT_OSS = {**SIZES, "num_hidden_layers": 1, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8}
MODELS = {**DENSE, "gpt_oss": lambda: T.GptOssForCausalLM(T.GptOssConfig(**GPT_OSS, layer_types=["full_attention"]))}
SLOW = ("qwen2_moe", "qwen3_moe", "mixtral", "llama4", "jamba")


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


def everything(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Llama-4's router has a forward of its own
        found = find_targets(model)
    left = ("shared_expert_gate", "dt_proj")  # of rank 1; its weight is read past its forward
    return {name: layer for name, layer in found.items() if not name.endswith(left)}


def in_peft(base, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stock.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


def close(a, b, bound=1e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=bound * float(b.abs().max()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
)
def test_everything_of_a_mixture_at_once(make, shake, tmp_path, name):
    """Attention, dense layers with experts' names, shared experts and the experts, of several ranks."""
    base, model = made(name), made(name)
    found = everything(model)
    even = {n: layer for index, (n, layer) in enumerate(found.items()) if index % 2}
    plans = make("pissa", even) | make("lora", {n: layer for n, layer in found.items() if n not in even})
    adapters = shake(install(model, plans), 0.1)
    adapters.export_peft(tmp_path / "a")
    inputs = example_inputs(base)
    ours, loaded = run(model, inputs), in_peft(base, tmp_path / "a")
    close(run(loaded, inputs), ours, 1e-5)
    close(run(loaded.merge_and_unload(), inputs), ours, 1e-5)
    assert float((run(base, inputs) - ours).abs().max()) > 1e-3 * float(ours.abs().max())
    said = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    stacked = {n.rpartition(".")[0] for n in found if n.rpartition(".")[2].isdigit()}
    assert stacked and stacked <= set(said["target_parameters"]) and not said["fan_in_fan_out"]
    adapters.export_merged(tmp_path / "b", verify=True)
    close(run(type(base).from_pretrained(tmp_path / "b").eval(), inputs), ours, 1e-5)


EXPERTS = ["gate_up_proj", "experts.down_proj"]


@pytest.mark.parametrize("state", ["merged", "folded", "bfloat16", "hollow", "cut"])
def test_in_every_state_of_the_weights(make, shake, tmp_path, monkeypatch, state):
    dtype = torch.bfloat16 if state == "bfloat16" else torch.float32
    base, model = made("gpt_oss", dtype), made("gpt_oss", dtype)
    adapters = install(model, make("pissa", find_targets(model, EXPERTS)), "fold" if state == "folded" else "carry")
    shake(adapters, 0.1)
    inputs, delta = example_inputs(base), adapters.delta()
    ours = run(model, inputs)
    if state == "merged":
        adapters.merge()
    if state == "hollow":
        monkeypatch.setattr(example, "RUN_UP_TO", 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    said = adapters.export_peft(tmp_path / "a", verify=True, rank=1 if state == "cut" else None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    loaded = in_peft(base, tmp_path / "a")
    outer = loaded.get_submodule("base_model.model.model.layers.0.mlp.experts")
    for wrapper in (outer, outer.base_layer):
        change = wrapper.get_delta_weight("default").float()
        for index in range(3):
            name = f"model.layers.0.mlp.experts.{wrapper.parameter_name}.{index}"
            left = float((change[index].mT - delta[name]).norm() / delta[name].norm())
            assert abs(left - said["error"][name]) < (4e-3 if state == "bfloat16" else 1e-4)
            assert (said["error"][name] > 1e-3) == (state == "cut")
    if state not in ("cut", "bfloat16"):
        close(run(loaded, inputs), ours, 1e-5)


class Experts(nn.Module):
    """Two stacks and a linear layer beside them in one module; read as x W[e] or W[e] x."""

    def __init__(self, count, said=None):
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, 4, 5))
        self.mid, self.down = nn.Parameter(torch.randn(count, 3, 5)), nn.Parameter(torch.randn(count, 3, 4))
        self.router = nn.Linear(4, 4)
        if said is not None:
            self.is_transposed = said

    def forward(self, x):
        x, y = self.router(x), 0
        for e in range(len(self.up)):
            y = y + nn.functional.linear(torch.tanh(x @ self.up[e]), self.mid[e]) @ self.down[e]
        return y


class Block(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.experts, self.out = Experts(*args), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.experts(x))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("said", [None, False, True])
@pytest.mark.parametrize("targets", [None, ["experts.up.0", "router"], ["mid"]])
def test_stacks_of_ones_own(make, shake, tmp_path, count, said, targets):
    """Three stacks with a layer among them: PEFT wraps the module three times, and names what lies in it anew."""
    torch.manual_seed(0)
    base, x = Block(count, said), torch.randn(6, 4)
    model = copy.deepcopy(base)
    adapters = shake(install(model, make("lora", find_targets(model, targets or "all-linear"))), 0.3)
    if said and count == 1:
        with pytest.raises(UserError, match=r"cannot export experts\.\w+\.0: PEFT adds a lone expert's change the wr"):
            adapters.export_peft(tmp_path / "a", verify=False)
        assert list(tmp_path.iterdir()) == []
        return
    adapters.export_peft(tmp_path / "a", verify={"x": x})
    loaded, ours = in_peft(base, tmp_path / "a"), model(x)
    close(loaded(x), ours, 1e-5)
    close(loaded.merge_and_unload()(x), ours, 1e-5)
    assert float((base(x) - ours).detach().abs().max()) > 1e-3


def spoil(monkeypatch, config=lambda said: None, tensors=lambda state: None):
    write = peft._write

    def wrong(folder, said, state):
        config(said), tensors(state)
        write(folder, said, state)

    monkeypatch.setattr(peft, "_write", wrong)


UP = "base_model.model.experts.base_layer.base_layer.lora_{}.weight"


def adapt_another_expert(state):
    state[UP.format("B")][0, -1] += 1  # the last rank of the last expert
    state[UP.format("A")][-1] += 1


MISTAKES = {
    "a wrong number": (
        {"tensors": lambda state: state[UP.format("B")].add_(1)},
        r"experts\.up\.0: stock PEFT makes another change of it",
    ),
    "another expert": ({"tensors": adapt_another_expert}, r"experts\.up: stock PEFT would adapt other experts too"),
    "a tensor lost": ({"tensors": lambda state: state.pop(UP.format("B"))}, "stock PEFT does not find its tensors"),
    "a stack lost": (
        {"config": lambda said: said["target_parameters"].remove("experts.mid")},
        r"experts\.mid\.0: stock PEFT does not adapt it|stock PEFT cannot load|does not find",
    ),
    "one more": (
        {"config": lambda said: said["target_parameters"].append("out.weight")},
        r"would adapt out\.weight too|does not find its tensors: .*out",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_export_is_refused(make, shake, tmp_path, monkeypatch, name):
    mistake, line = MISTAKES[name]
    torch.manual_seed(0)
    model = Block(2)
    targets = ["experts.up.0", "experts.mid", "experts.down"]
    adapters = shake(install(model, make("lora", find_targets(model, targets))), 0.3)
    spoil(monkeypatch, **mistake)
    with pytest.raises(UserError, match=f"cannot export.*({line})") as caught:
        adapters.export_peft(tmp_path / "a")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 and list(tmp_path.iterdir()) == []


def test_what_peft_has_no_place_for_is_refused(make, shake, tmp_path):
    torch.manual_seed(0)

    def refused(model, line, targets=("up",), trained=None):
        adapters = shake(install(model, make("lora", find_targets(model, list(targets)))), 0.3)
        if trained:
            model.get_parameter(trained).requires_grad_(True)
        with pytest.raises(UserError, match=line) as caught:
            adapters.export_peft(tmp_path / "a", verify=False)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 and list(tmp_path.iterdir()) == []

    refused(Experts(2), r"cannot export up\.0: the model itself holds it")
    refused(Block(2), "PEFT renames what lies beside adapted experts", trained="experts.router.weight")
    refused(Block(2), "PEFT would save experts whole, in which experts.up.0 is adapted", trained="experts.down")
    twice = nn.Sequential(Block(2), Block(2))
    twice[1].experts = twice[0].experts
    refused(twice, r"cannot export 1\.experts\.up\.0: it is the same layer as 0\.experts\.up\.0", ["0.experts.up.0"])
    mixed = Block(2)
    mixed.out = T.pytorch_utils.Conv1D(4, 4)
    refused(mixed, r"cannot export out: PEFT takes no layer stored as \(in, out\) beside experts", ["up", "out"])


def test_a_trained_bias_beside_experts_travels(make, shake, tmp_path):
    torch.manual_seed(0)
    base, x = Block(2), torch.randn(6, 4)
    model = copy.deepcopy(base)
    adapters = shake(install(model, make("lora", find_targets(model, ["up", "router"]))), 0.3)
    model.experts.router.bias.requires_grad_(True).data.add_(1)
    adapters.export_peft(tmp_path, verify={"x": x})
    close(in_peft(base, tmp_path)(x), model(x), 1e-5)


def test_one_of_two_runs(make, shake, tmp_path):
    torch.manual_seed(0)
    base = made("gpt_oss")
    model = made("gpt_oss")
    found = find_targets(model, EXPERTS)
    first, second = install(model, [make("lora", found), make("pissa", {n: found[n] for n in list(found)[:2]})])
    shake(first, 0.1), shake(second, 0.1)
    inputs = example_inputs(base)
    for number, adapters in enumerate((first, second)):
        adapters.export_peft(tmp_path / str(number))
        with adapters.pack.active([number]):
            close(run(in_peft(base, tmp_path / str(number)), inputs), run(model, inputs), 1e-5)
    state = load_file(tmp_path / "1" / "adapter_model.safetensors")
    assert len(state) == 2  # one stack of the two
