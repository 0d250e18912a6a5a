"""What was trained beside the adapters: exact in stock PEFT, or refused in one line."""

from __future__ import annotations

import copy
import json
import re
import warnings

import peft
import pytest
import torch
import transformers as T
from safetensors.torch import load_file
from torch import nn

from lorax.adapters.install import find_targets, install
from lorax.errors import UserError
from lorax.exports.example import example_inputs, run

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = {**SIZES, "max_position_embeddings": 32, "num_labels": 3, "pad_token_id": 0}
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
MODELS = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "llama tied": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama scores": lambda: T.LlamaForSequenceClassification(T.LlamaConfig(**SIZES, num_labels=3, pad_token_id=0)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES, num_key_value_heads=2)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)),
    "t5": lambda: T.T5ForConditionalGeneration(T.T5Config(**T5)),
    "bert masked": lambda: T.BertForMaskedLM(T.BertConfig(**BERT)),
    "bert": lambda: T.BertForSequenceClassification(T.BertConfig(**BERT)),
    "roberta": lambda: T.RobertaForSequenceClassification(T.RobertaConfig(**BERT)),
    "albert": lambda: T.AlbertForSequenceClassification(T.AlbertConfig(**BERT, embedding_size=8)),
    "opt": lambda: T.OPTForCausalLM(
        T.OPTConfig(**{**SIZES, "ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16})
    ),
    "vit": lambda: T.ViTForImageClassification(
        T.ViTConfig(**{k: v for k, v in SIZES.items() if k != "vocab_size"}, image_size=16, patch_size=8, num_labels=3)
    ),
}


def trained(make, name, beside, targets="all-linear", kind="lora"):
    """(base, adapted model, adapters), everything that trains moved; `beside` matches names that train too."""
    torch.manual_seed(0)
    base = MODELS[name]().eval()
    model = copy.deepcopy(base)
    adapters = install(model, make(kind, find_targets(model, targets)))
    matching = [p for n, p in model.named_parameters() if re.search(beside, n) and ".lanes." not in n] if beside else []
    with torch.no_grad():
        for parameter in [*adapters.parameters(), *matching]:
            parameter.requires_grad_(True).add_(torch.randn_like(parameter) * 0.1)
    assert bool(matching) == bool(beside)
    return base, model, adapters


def in_peft(base, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


def round_trip(base, model, adapters, folder):
    """Return the folder's configuration; stock PEFT's output must be the model's."""
    adapters.export_peft(folder, verify=False)
    inputs = example_inputs(base)
    ours, theirs, before = (run(m, inputs) for m in (model, in_peft(base, folder), base))
    assert (ours - before).abs().max() > 1e-3 * before.abs().max()
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6 * float(ours.abs().max()))
    return json.loads((folder / "adapter_config.json").read_text())


FAST = [
    ("llama tied", "embed", ["lm_head", "model.embed_tokens"], True),
    ("llama", "embed|lm_head", ["lm_head", "model.embed_tokens"], False),
    ("llama", "model.norm", ["model.norm"], False),
    ("bert", "classifier.bias", ["classifier"], False),
    ("qwen2", "bias", None, False),
]
SLOW = [
    ("llama", "norm", [*(f"model.layers.0.{x}_layernorm" for x in ("input", "post_attention")), "model.norm"], False),
    ("gpt2", "wte|ln_f", ["lm_head", "transformer.ln_f", "transformer.wte"], True),
    ("opt", "embed_tokens", ["lm_head", "model.decoder.embed_tokens"], True),
    ("t5", "shared", ["decoder.embed_tokens", "encoder.embed_tokens", "lm_head", "shared"], False),
    ("bert masked", "word_emb", ["bert.embeddings.word_embeddings", "cls.predictions.decoder"], False),
    ("bert", "", ["classifier"], False),
    ("roberta", "classifier", ["classifier"], False),
    ("albert", "classifier|word_emb", ["albert.embeddings.word_embeddings", "classifier"], False),
    ("llama scores", "score", ["score"], False),
    ("vit", "classifier|cls_token|layernorm", None, False),
]  # fmt: skip


CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("name", "beside", "modules", "tied"), CASES)
def test_stock_peft_computes_with_what_was_trained_beside(make, tmp_path, name, beside, modules, tied):
    config = round_trip(*trained(make, name, beside), tmp_path / "a")
    if modules is not None or name != "vit":
        assert config["modules_to_save"] == modules
    assert config.get("ensure_weight_tying", False) == tied
    assert config["bias"] == ("lora_only" if name == "qwen2" else "none")


def test_tied_embeddings_are_written_as_peft_writes_them(make, tmp_path):
    """The same keys as PEFT with ensure_weight_tying, and one tensor again after loading."""
    base, model, adapters = trained(make, "llama tied", "embed", targets=["q_proj"])
    round_trip(base, model, adapters, tmp_path / "ours")
    config = peft.LoraConfig(
        r=3,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
        task_type="CAUSAL_LM",
    )
    peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / x / "adapter_model.safetensors") for x in ("ours", "theirs"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert torch.equal(ours["base_model.model.lm_head.weight"], model.lm_head.weight.detach())
    loaded = in_peft(base, tmp_path / "ours").base_model.model
    saved = [m.modules_to_save["default"].weight for m in (loaded.lm_head, loaded.model.embed_tokens)]
    assert saved[0] is saved[1]


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), "llama tied"])
def test_added_tokens_travel_along(make, tmp_path, name):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.resize_token_embeddings(43, mean_resizing=False)
    base = copy.deepcopy(model).eval()
    adapters = install(model, make("pissa", find_targets(model)))
    with torch.no_grad():
        for parameter in (*adapters.parameters(), model.get_input_embeddings().weight, model.lm_head.weight):
            parameter.requires_grad_(True).add_(torch.randn_like(parameter) * 0.1)
    round_trip(base, model.eval(), adapters, tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        in_peft(MODELS[name](), tmp_path)


NO_PLACE = "weight: PEFT has no place for it beside an adapter on"
REFUSED = [
    ("llama", r"q_proj\.weight", "all-linear", f"q_proj.{NO_PLACE} .*q_proj; export_merged and save keep it"),
    ("llama tied", "embed", ["lm_head"], f"embed_tokens.{NO_PLACE} lm_head; save keeps it"),
    (
        "bert masked",
        r"cls\.predictions\.bias",
        "all-linear",
        "would save cls.predictions whole, in which .* is adapted",
    ),
]


@pytest.mark.parametrize(("name", "beside", "targets", "line"), REFUSED)
def test_what_pefts_format_cannot_hold_is_refused(make, tmp_path, name, beside, targets, line):
    *_, adapters = trained(make, name, beside, targets)
    with pytest.raises(UserError, match=f"cannot export .*{line}"):
        adapters.export_peft(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    """A parameter of the model itself, modules whose names end alike, a norm with a running mean."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.norm, self.renorm, self.batch = nn.LayerNorm(6), nn.LayerNorm(6), nn.BatchNorm1d(6)
        self.q_proj, self.xq_proj, self.inner = nn.Linear(6, 6), nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6))

    def forward(self, x):
        return self.inner(self.renorm(self.norm(self.xq_proj(self.q_proj(self.batch(x)))))) * self.scale


def test_names_that_end_alike_and_buffers(make, shake, tmp_path):
    """PEFT finds modules to save by the end of their names: norm is renorm too."""
    torch.manual_seed(0)
    base, x = Odd(), torch.randn(4, 6)
    model = copy.deepcopy(base)
    adapters = shake(install(model, make("lora", find_targets(model, ["xq_proj"]))), 0.3)
    for module in (model.norm, model.batch):
        module.weight.requires_grad_(True).data.mul_(2)
    model.train()(x)  # moves the running mean, which is saved with its module
    adapters.export_peft(tmp_path / "a", verify={"x": x})
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["batch", "norm"] and config["target_modules"] == ["xq_proj"]
    torch.testing.assert_close(in_peft(base, tmp_path / "a")(x), model.eval()(x), rtol=1e-6, atol=1e-6)
    model.q_proj.weight.requires_grad_(True)
    with pytest.raises(UserError, match="PEFT would save xq_proj whole, in which xq_proj is adapted"):
        adapters.export_peft(tmp_path / "b")
    model.q_proj.weight.requires_grad_(False)
    model.scale.requires_grad_(True)
    with pytest.raises(UserError, match="cannot export scale: the model itself holds it"):
        adapters.export_peft(tmp_path / "b")
    assert not (tmp_path / "b").exists()
