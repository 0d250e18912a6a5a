"""Trainable counts by closed formula against published ones: architectures on the meta device."""

import functools

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DebertaV2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from lorax.adapters.install import find_targets
from lorax.adapters.kinds import shape_of
from lorax.initializers.registry import build


def on_meta(kind, config):
    with torch.device("meta"):
        return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)


def causal(config):
    return lambda: on_meta(AutoModelForCausalLM, config)


def decoder(kind, hidden, inner, layers, heads, kv, vocab=32, **more):
    return causal(
        kind(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            vocab_size=vocab,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            **more,
        )  # fmt: skip
    )


MODELS = {
    "llama2-7b": decoder(LlamaConfig, 4096, 11008, 32, 32, 32),
    "llama3.2-3b": decoder(LlamaConfig, 3072, 8192, 28, 24, 8),
    "mistral-7b": decoder(MistralConfig, 4096, 14336, 32, 32, 8),
    "gemma-2b": decoder(GemmaConfig, 2048, 16384, 18, 8, 1, head_dim=256),
    "t5-base": lambda: on_meta(
        T5ForConditionalGeneration, T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32)
    ),
    "roberta-large": lambda: on_meta(
        AutoModelForSequenceClassification,
        RobertaConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, vocab_size=32
        ),
    ),
    "deberta-v3-base": lambda: on_meta(
        AutoModelForTokenClassification,
        DebertaV2Config(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            vocab_size=32,
            relative_attention=True,
            position_buckets=256,
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
        ),  # fmt: skip
    ),
    "vit-b": lambda: on_meta(ViTForImageClassification, ViTConfig()),
    "vit-l": lambda: on_meta(
        ViTForImageClassification,
        ViTConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16),
    ),
}
ROBERTA = ["query", "value", "attention.output.dense", "output.dense"]
VIT = "query|value|q_proj|v_proj"  # transformers 5 renamed them

PUBLISHED = [
    ("llama2-7b", "all-linear", "lora", {"rank": 8}, 19_988_480),
    ("llama2-7b", "all-linear", "pissa", {"rank": 128}, 319_815_680),
    ("llama2-7b", ["q_proj", "v_proj"], "lora", {"rank": 8}, 4_194_304),
    ("llama3.2-3b", ["q_proj", "v_proj"], "lora", {"rank": 32}, 9_175_040),
    ("llama3.2-3b", ["q_proj", "v_proj"], "milora", {"rank": 32}, 9_175_040),
    ("llama3.2-3b", ["q_proj", "v_proj"], "dora", {"rank": 32}, 9_289_728),  # these three: PEFT's method comparison
    ("llama3.2-3b", ["q_proj", "v_proj"], "lora_fa", {"rank": 32}, 3_670_016),
    ("llama3.2-3b", ["q_proj", "v_proj"], "vera", {"rank": 256}, 129_024),
    ("llama2-7b", "all-linear", "olora", {"rank": 8}, 19_988_480),
    ("llama2-7b", "all-linear", "corda", {"rank": 128}, 319_815_680),
    ("mistral-7b", ["gate_proj", "up_proj", "down_proj"], "svf", {}, 393_216),  # as Llama-3-8B, in its shapes
    ("mistral-7b", "all-linear", "lora_sb", {"rank": 64}, 917_504),
    ("t5-base", "all-linear", "lora_ga", {"rank": 8}, 8 * 405_504),
    ("mistral-7b", "all-linear", "lora_xs", {"rank": 64}, 917_504),
    ("roberta-large", ROBERTA, "lora_xs", {"rank": 25}, 60_000),
    ("roberta-large", ROBERTA, "lora_xs", {"rank": 16}, 24_576),
    ("roberta-large", ROBERTA, "lora_xs", {"rank": 4}, 1_536),
    ("gemma-2b", "all-linear", "svft", {}, 193_536),
    ("gemma-2b", "all-linear", "svft", {"pattern": "banded", "width": 16}, 6_352_416),
    ("gemma-2b", "all-linear", "svft", {"pattern": "random", "width": 16}, 6_352_416),
    ("vit-b", VIT, "svft", {}, 18_432),
    ("vit-l", VIT, "svft", {}, 49_152),
    ("deberta-v3-base", r"deberta\..*(query_proj|key_proj|value_proj|dense)", "svft", {}, 55_296),
    ("deberta-v3-base", ["query_proj", "key_proj", "value_proj"], "pissa", {"rank": 8}, 442_368),
    ("deberta-v3-base", r"deberta\..*(query_proj|key_proj|value_proj|dense)", "lora", {"rank": 8}, 1_327_104),
]


@functools.cache
def built(model):
    return MODELS[model]()


@pytest.mark.parametrize("model,targets,name,fields,count", PUBLISHED)
def test_counts_are_the_published_ones(model, targets, name, fields, count):
    layers = find_targets(built(model), targets)
    initializer = build(name, own=fields)
    for layer, module in layers.items():
        initializer.check(layer, *shape_of(module))
    assert sum(initializer.count(*shape_of(module)) for module in layers.values()) == count
