"""Models that others have wrapped: refused in one line, and left as they were."""

from __future__ import annotations

import accelerate
import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import LlamaConfig, LlamaForCausalLM

import lorax

LORA = peft.LoraConfig(r=2, target_modules=["q_proj"])
PREFIX = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


def llama():
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    return LlamaForCausalLM(config)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))


def added():
    model = llama()
    model.add_adapter(LORA)
    return model


def adapted(init):
    model = net()
    lorax.attach(model, rank=2)
    return model


class FullyShardedDataParallel(nn.Module):
    """By its name, as the real one: that needs a process group."""

    def __init__(self):
        super().__init__()
        self.module = net()


WRAPPED = {
    "peft": (lambda: peft.get_peft_model(llama(), LORA), "PEFT's PeftModel: take PEFT's adapters off"),
    "peft inside": (lambda: nn.Sequential(peft.get_peft_model(llama(), LORA)), "0 is PEFT's"),
    "prompt tuning": (lambda: peft.get_peft_model(llama(), PREFIX), "PEFT's PeftModel"),
    "add_adapter": (added, "model.layers.0.self_attn.q_proj is PEFT's Linear"),
    "compiled": (lambda: torch.compile(net(), backend="eager"), "call torch.compile on it"),
    "data parallel": (lambda: nn.DataParallel(net()), "wrapped in DataParallel: attach to the module inside"),
    "fsdp": (FullyShardedDataParallel, "wrapped in FullyShardedDataParallel"),
    "scripted": (lambda: torch.jit.trace(net(), torch.randn(2, 8)), "TopLevelTracedModule"),
    "offloaded": (lambda: accelerate.cpu_offload(llama(), torch.device("cpu")), "offloaded by accelerate"),
    "adapted": (lambda: adapted("lora"), "has adapters already"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("init", ["lora", "full", "none"])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_models_are_refused(name, init, tmp_path):
    make, line = WRAPPED[name]
    model = make()
    kinds, flags = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(lorax.UserError) as caught:
        lorax.attach(model, init=init, rank=2)
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert kinds == [type(m) for m in model.modules()] and flags == [p.requires_grad for p in model.parameters()]


def test_after_unload_it_is_welcome_and_a_saved_adapter_refuses_too(tmp_path):
    model = llama()
    adapters = lorax.attach(model, rank=2)
    adapters.save(tmp_path, quiet=True)
    adapters.detach()
    wrapped = peft.get_peft_model(model, LORA)
    with pytest.raises(lorax.UserError, match="is PEFT's"):
        lorax.load(wrapped, tmp_path)
    assert len(lorax.attach(wrapped.unload(), rank=2).names()) == 7


def test_accelerates_hooks_that_only_move_inputs_are_no_obstacle():
    model, x = net(), torch.randn(3, 8)
    base = model(x)
    for layer in model:
        add_hook_to_module(layer, AlignDevicesHook(torch.device("cpu")))
    adapters = lorax.attach(model, rank=2)
    assert torch.equal(model(x), base) and adapters.names() == ["0", "1"]
    adapters.merge()
    assert torch.equal(model(x), base)


COMPUTED = {
    "parametrised": lambda layer: parametrizations.weight_norm(layer),
    "weight norm": lambda layer: nn.utils.weight_norm(layer),
    "spectral norm": lambda layer: nn.utils.spectral_norm(layer),
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_layers_whose_weight_is_computed_are_left_out(name):
    model = net()
    COMPUTED[name](model[0])
    with pytest.warns(UserWarning, match="left out 0 .* computes its weight"):
        adapters = lorax.attach(model, rank=2)
    assert adapters.names() == ["1"]
    adapters.detach()
    with pytest.raises(lorax.UserError, match="target '0' cannot be adapted"):
        lorax.attach(model, rank=2, targets=["0"])


def test_a_replaced_forward_is_left_out():
    model = net()
    own = model[0].forward
    model[0].forward = lambda x: 2 * own(x)
    with pytest.warns(UserWarning, match="left out 0 .*its forward was replaced"):
        assert lorax.attach(model, rank=2).names() == ["1"]
