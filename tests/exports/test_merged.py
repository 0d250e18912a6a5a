from __future__ import annotations

import copy
import json
import os

import pytest
import torch
import transformers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorax.adapters import baselines
from lorax.adapters.install import find_targets, install
from lorax.errors import UserError
from lorax.exports import merged
from lorax.exports.tokenizer import copy_tokenizer
from lorax.models.toy import tokenizer

TINY = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=1, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    ),
}
IDS = torch.arange(14).view(2, 7)


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("llama", "embeddings"),
        ("gpt2", ""),
        pytest.param("llama", "", marks=pytest.mark.slow),
        pytest.param("gpt2", "embeddings", marks=pytest.mark.slow),
    ],
)
def test_a_merged_checkpoint_is_a_plain_model(make, shake, tmp_path, name, beside):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    adapters = shake(install(model, make("pissa", find_targets(model))))
    if beside:
        with torch.no_grad():
            model.get_input_embeddings().weight.requires_grad_(True).add_(0.1)
    want = model(IDS).logits
    adapters.export_merged(tmp_path)
    assert torch.equal(model(IDS).logits, want)
    plain = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(plain(IDS).logits, want, rtol=1e-4, atol=1e-5)
    assert not any("lanes" in key for key in plain.state_dict())
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight


def test_generation_settings_and_a_tokenizer_travel_along(make, tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            with open(os.path.join(folder, "tokenizer.json"), "w") as file:
                file.write("{}")

    model = MODELS["llama"]()
    model.generation_config.max_new_tokens = 7
    install(model, make("lora", find_targets(model))).export_merged(tmp_path / "a", tokenizer=Tokenizer())
    assert json.loads((tmp_path / "a" / "generation_config.json").read_text())["max_new_tokens"] == 7
    assert (tmp_path / "a" / "tokenizer.json").exists() and list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_plain_module_with_a_shared_weight(make, shake, tmp_path):
    from safetensors.torch import load_model

    def net():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model[2].weight = model[1].weight
        return model

    model = net()
    adapters = shake(install(model, make("lora", find_targets(model, ["0"]))))
    adapters.export_merged(tmp_path)
    load_model(fresh := net(), tmp_path / "model.safetensors")
    x = torch.randn(2, 4)
    torch.testing.assert_close(fresh(x), model(x))
    tied = install(net(), make("lora", {"1": nn.Linear(4, 4)}))
    with pytest.raises(UserError, match="cannot merge 1: its weight is shared with 2.weight, which would change"):
        tied.export_merged(tmp_path / "tied")
    assert not (tmp_path / "tied").exists()


def test_weights_of_an_older_checkpoint_are_replaced(make, shake, tmp_path):
    """Left beside the new shards, the old file would be read in their place."""
    model = MODELS["llama"]()
    for old in (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "model-00001-of-00002.safetensors",
    ):
        (tmp_path / old).write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    install(model, make("lora", find_targets(model))).export_merged(tmp_path, verify=False)
    assert (tmp_path / "notes.txt").read_text() == "mine" and not list(tmp_path.glob("*.bin"))
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter in PEFT's format, which would be added again"):
        baselines.FullModel(MODELS["llama"]()).export_merged(tmp_path)


@pytest.mark.parametrize("what", ["values", "a tensor", "the output"])
def test_a_checkpoint_that_is_not_the_model_is_refused(make, shake, tmp_path, monkeypatch, what):
    model = MODELS["llama"]()
    adapters = shake(install(model, make("lora", find_targets(model))))
    if what == "the output":
        layer = adapters.linear("model.layers.0.self_attn.q_proj")
        write = layer.merge
        monkeypatch.setattr(layer, "merge", lambda adapter: (write(adapter), layer.weight.data.mul_(1.5)))
    else:

        def spoil(model, folder):
            state = {key: value.clone() for key, value in model.state_dict().items() if key != "lm_head.weight"}
            if what == "values":
                state["model.norm.weight"][3] += 1
            else:
                del state["model.norm.weight"]
            type(model).save_pretrained(model, folder, state_dict=state)

        monkeypatch.setattr(merged, "_write", spoil)
    line = {
        "values": "cannot export model.norm.weight: it reads back with other values",
        "a tensor": "cannot be read back: it lacks model.norm.weight",
        "the output": "the merged model computes another output, relative error",
    }[what]
    with pytest.raises(UserError, match=line):
        adapters.export_merged(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [] and not adapters.merged
    if what != "the output":
        adapters.export_merged(tmp_path / "a", verify=False)


def test_large_models_are_verified_on_request(make, tmp_path, monkeypatch, capsys):
    model = MODELS["llama"]()
    adapters = install(model, make("lora", find_targets(model)))
    monkeypatch.setattr(merged, "VERIFY_UP_TO", 10)
    read = []
    monkeypatch.setattr(merged, "_check", lambda *_: read.append(1))
    adapters.export_merged(tmp_path / "a")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "exported without verifying: 4,400 parameters, more than 10" in said and read == []
    adapters.export_merged(tmp_path / "b", verify=True)
    assert capsys.readouterr().out == "" and read == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_full_fine_tuning_and_other_precisions(make, shake, tmp_path, dtype):
    model = MODELS["llama"]().to(dtype)
    base = copy.deepcopy(model)
    arm = shake(baselines.FullModel(model))
    arm.export_merged(tmp_path / "full")
    back = LlamaForCausalLM.from_pretrained(tmp_path / "full", dtype=dtype)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))
    adapters = shake(install(base, make("lora", find_targets(base))))
    adapters.export_merged(tmp_path / "adapted")
    adapters.merge()
    back = LlamaForCausalLM.from_pretrained(tmp_path / "adapted", dtype=dtype).state_dict()
    assert all(torch.equal(value, back[key]) for key, value in base.state_dict().items() if ".lanes." not in key)


def test_the_tokenizer_of_the_folder_that_was_loaded_travels_along(make, tmp_path):
    tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "secret.txt").write_text("mine")
    MODELS["llama"]().save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    install(model, make("lora", find_targets(model))).export_merged(tmp_path / "a")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "base" / file).read_bytes()
    assert not (tmp_path / "a" / "secret.txt").exists()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "a").encode("hi") == tokenizer().encode("hi")


@pytest.mark.parametrize("name", ["", "org/not-in-the-cache", "/a/folder/that/is/gone", "a b/c"])
def test_a_model_from_elsewhere_is_merged_without_a_tokenizer(tmp_path, name):
    model = MODELS["llama"]()
    model.config._name_or_path = name
    assert copy_tokenizer(model, tmp_path) == [] and copy_tokenizer(torch.nn.Linear(2, 2), tmp_path) == []
