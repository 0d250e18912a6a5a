from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from lorax.adapters.install import find_targets, install
from lorax.exports.peft import truncate

TINY = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=1, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    ),
}
IDS = torch.arange(14).view(2, 7)


def reload(base, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(copy.deepcopy(base), path).eval()(IDS).logits


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_stock_peft_gives_equal_logits_on_the_untouched_base(kind, make, shake, tmp_path, name):
    torch.manual_seed(0)
    base = MODELS[name]().eval()
    model = copy.deepcopy(base)
    adapters = shake(install(model, make(kind, find_targets(model))), 0.05)
    want = model(IDS).logits
    report = adapters.export_peft(tmp_path, verify=False)  # what is compared here is computed by hand
    torch.testing.assert_close(reload(base, tmp_path), want, rtol=1e-4, atol=1e-5)
    assert (want - base(IDS).logits).abs().max() > 1e-3 and max(report["error"].values()) == 0
    expected = {"lora": 3, "pissa": 4, "xs": 3, "adalora": 4, "only_a": 3, "only_b": 2}
    if kind in expected:
        assert set(report["rank"].values()) == {expected[kind]}


def test_the_exported_difference_survives_float16(make, tmp_path):
    """[B - B0, B0] [A ; A - A0] keeps a small update where [B, -B0] [A ; A0] would lose it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    adapters = install(model, make("pissa", find_targets(model)))
    with torch.no_grad():
        for p in adapters.parameters():
            p.copy_(1e-4 * torch.randn_like(p))
    want = adapters.delta()["0"]
    adapters.export_peft(tmp_path)
    from safetensors.torch import load_file

    B, A = (load_file(tmp_path / "adapter_model.safetensors")[f"base_model.model.0.lora_{x}.weight"] for x in "BA")
    got = B.half().float() @ A.half().float()
    assert (got - want).norm() <= 1e-3 * want.norm()


def test_truncation_is_eckart_young_and_reported(make, shake, tmp_path, capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9, dtype=torch.float64))
    adapters = shake(install(model, make("banded", find_targets(model))))
    S = torch.linalg.svdvals(adapters.delta()["0"].double())
    report = adapters.export_peft(tmp_path, rank=4)
    assert report["rank"] == {"0": 4}
    assert report["error"]["0"] == pytest.approx(float(S[4:].norm() / S.norm()), rel=1e-5)
    assert "relative error" in capsys.readouterr().out
    B, A = torch.randn(9, 5, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    low = truncate(B, A, 5)
    torch.testing.assert_close(low[0] @ low[1], B @ A)


def test_mixed_ranks_and_layers_whose_names_end_alike(make, shake, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)))
    model = copy.deepcopy(base)
    targets = find_targets(model, r"0|1\.2")
    targets.pop("1.0")
    factors = make("lora", {"0": targets["0"]}) | make("pissa", {"1.2": targets["1.2"]})
    shake(install(model, factors)).export_peft(tmp_path)
    x = torch.randn(4, 6)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-6)
    assert sum(hasattr(m, "lora_A") for m in loaded.modules()) == 2


def test_a_trained_head_is_exported_with_the_adapter(make, shake, tmp_path):
    torch.manual_seed(0)
    base = LlamaForSequenceClassification(LlamaConfig(**TINY, pad_token_id=0)).eval()
    model = copy.deepcopy(base)
    adapters = shake(install(model, make("lora", find_targets(model))))
    model.score.weight.requires_grad_(True)
    with torch.no_grad():
        model.score.weight.add_(1)
    adapters.export_peft(tmp_path)
    torch.testing.assert_close(reload(base, tmp_path), model(IDS).logits, rtol=1e-4, atol=1e-5)
