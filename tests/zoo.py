"""Tiny random models of many architectures, from transformers' own configurations, each with one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as T  # noqa: N812

Made = tuple[Any, dict[str, Any]]
ZOO: dict[str, Callable[[], Made]] = {}

C = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
     "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
     "eos_token_id": 2}  # fmt: skip
PLAIN = {key: value for key, value in C.items() if key != "num_key_value_heads"}
E = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
     "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
IDS = torch.randint(3, 90, (4, 9), generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0])


def text() -> dict[str, Any]:
    return {"input_ids": IDS.clone(), "labels": IDS.clone()}


def classes() -> dict[str, Any]:
    return {"input_ids": IDS.clone(), "attention_mask": torch.ones_like(IDS), "labels": CLASSES.clone()}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def causal(name: str, model: str, **config: Any) -> None:
    """`model`ForCausalLM of `model`Config."""
    add(name, f"{model}ForCausalLM", f"{model}Config", text, **config)


def classifier(name: str, model: str, **config: Any) -> None:
    add(name, f"{model}ForSequenceClassification", f"{model}Config", classes, **config)


def add(name: str, model: str, config: str, batch: Callable[[], dict[str, Any]], **fields: Any) -> None:
    ZOO[name] = lambda: (getattr(T, model)(getattr(T, config)(**fields)), batch())


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 96, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
MOE = C | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

causal("llama_tied", "Llama", **C, tie_word_embeddings=True)
add("gpt2", "GPT2LMHeadModel", "GPT2Config", text, vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
causal("gptneox", "GPTNeoX", **PLAIN)
causal("falcon", "Falcon", **SMALL)
causal("bloom", "Bloom", vocab_size=96, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
causal("phi3", "Phi3", **C)
causal("mixtral", "Mixtral", **C, num_local_experts=4, num_experts_per_tok=2)
causal("qwen3moe", "Qwen3Moe", **MOE, head_dim=8, decoder_sparse_step=1)
causal("qwen2moe", "Qwen2Moe", **MOE, shared_expert_intermediate_size=24)
causal("gptoss", "GptOss", **C, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
       layer_types=["full_attention", "sliding_attention"], sliding_window=8)  # fmt: skip
add("llama4", "Llama4ForCausalLM", "Llama4TextConfig", text, **C, head_dim=8, num_local_experts=2,
    num_experts_per_tok=1, intermediate_size_mlp=48, interleave_moe_layer_step=1)  # fmt: skip
MLA = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 8}
DEEPSEEK = C | MLA | {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
                      "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1}  # fmt: skip
causal("deepseekv3", "DeepseekV3", **DEEPSEEK, q_lora_rank=8)
causal("gemma2", "Gemma2", **C, head_dim=8)
causal("qwen2", "Qwen2", **C, tie_word_embeddings=True)
causal("qwen3", "Qwen3", **C, head_dim=8)
add("gemma3_mm", "Gemma3ForConditionalGeneration", "Gemma3Config", text, text_config=C | {"head_dim": 8},
    vision_config=VISION | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4)  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
add("qwen2vl", "Qwen2VLForConditionalGeneration", "Qwen2VLConfig", text, text_config=C | {"rope_parameters": ROPE},
    vision_config={"embed_dim": 32, "depth": 1, "num_heads": 4, "hidden_size": 32, "mlp_ratio": 2})  # fmt: skip
T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0}  # fmt: skip
add("t5", "T5ForConditionalGeneration", "T5Config", text, **T5)
add("t5_gated", "T5ForConditionalGeneration", "T5Config", text, **T5, feed_forward_proj="gated-gelu",
    tie_word_embeddings=False)  # fmt: skip
BART = {"vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
add("bart", "BartForConditionalGeneration", "BartConfig", text, **BART, max_position_embeddings=64)
classifier("bert_cls", "Bert", **E)
add("bert_mlm", "BertForMaskedLM", "BertConfig", text, **E)
classifier("roberta_cls", "Roberta", **E)
classifier("debertav3_cls", "DebertaV2", **E, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm",
           share_att_key=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0, position_biased_input=False,
           pooler_hidden_size=32)  # fmt: skip
classifier("deberta_cls", "Deberta", **E, relative_attention=True, pos_att_type=["p2c", "c2p"], pooler_hidden_size=32)
classifier("modernbert_cls", "ModernBert", **E, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
classifier("llama_cls", "Llama", **C, num_labels=3)
add("vit", "ViTForImageClassification", "ViTConfig", lambda: {"pixel_values": noise(4, 3, 32, 32), "labels": CLASSES},
    **VISION, image_size=32, patch_size=16, num_labels=3)  # fmt: skip
add("clip", "CLIPModel", "CLIPConfig",
    lambda: {"input_ids": IDS.clone(), "pixel_values": noise(4, 3, 32, 32), "return_loss": True},
    text_config=PLAIN, vision_config=VISION | {"image_size": 32, "patch_size": 16}, projection_dim=16)  # fmt: skip
add("whisper", "WhisperForConditionalGeneration", "WhisperConfig",
    lambda: {"input_features": noise(4, 8, 40), "labels": IDS.clone()}, **BART, num_mel_bins=8, max_source_positions=20,
    max_target_positions=30, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)  # fmt: skip
add("wav2vec2_cls", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config",
    lambda: {"input_values": noise(4, 800), "labels": CLASSES}, **VISION, conv_dim=(16, 16), conv_stride=(5, 2),
    conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    num_labels=3, classifier_proj_size=16)  # fmt: skip
causal("mamba", "Mamba", vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4)
causal("mamba2", "Mamba2", vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8,
       n_groups=1, chunk_size=8)  # fmt: skip
causal("bamba", "Bamba", **C, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8,
       attn_layer_indices=[1])  # fmt: skip
causal("jamba", "Jamba", **C, num_experts=2, num_experts_per_tok=1, expert_layer_period=2, expert_layer_offset=1,
       attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False)  # fmt: skip
causal("qwen3next", "Qwen3Next", **C, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
       shared_expert_intermediate_size=16, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
       linear_num_value_heads=4, layer_types=["linear_attention", "full_attention"])  # fmt: skip
causal("opt", "OPT", vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
       max_position_embeddings=64, word_embed_proj_dim=32)  # fmt: skip
classifier("xlnet_cls", "XLNet", vocab_size=96, d_model=32, n_layer=1, n_head=4, d_inner=48, num_labels=3)
classifier("albert_cls", "Albert", **E, embedding_size=16)
classifier("distilbert", "DistilBert", vocab_size=96, dim=32, hidden_dim=48, n_layers=1, n_heads=4, num_labels=3,
           max_position_embeddings=64)  # fmt: skip
classifier("electra", "Electra", **E, embedding_size=16)

# newer families
causal("smollm3", "SmolLM3", **C)
causal("olmo2", "Olmo2", **C)
causal("cohere2", "Cohere2", **C, head_dim=8)
causal("granite", "Granite", **C)
causal("glm4", "Glm4", **C, head_dim=8)
causal("glm4moe", "Glm4Moe", **C, head_dim=8, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
       first_k_dense_replace=1, n_group=1, topk_group=1)  # fmt: skip
causal("deepseekv2", "DeepseekV2", **DEEPSEEK, q_lora_rank=8)
causal("phimoe", "Phimoe", **C, num_local_experts=4, num_experts_per_tok=2)
causal("ernie4_5", "Ernie4_5", **C, head_dim=8)
causal("nemotron", "Nemotron", **C)
causal("stablelm", "StableLm", **C)
causal("seedoss", "SeedOss", **C, head_dim=8)

# other tasks, other ways to hold experts, other kinds of input
causal("jetmoe", "JetMoe", **C, num_local_experts=4, num_experts_per_tok=2, kv_channels=8)
causal("granitemoehybrid", "GraniteMoeHybrid", **C, num_local_experts=4, num_experts_per_tok=2,
       shared_intermediate_size=24, layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=8,
       mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)  # fmt: skip
causal("lfm2moe", "Lfm2Moe", **MOE, num_dense_layers=1, layer_types=["conv", "full_attention"])
add("bert_tokens", "BertForTokenClassification", "BertConfig",
    lambda: {"input_ids": IDS.clone(), "labels": IDS % 3}, **E)  # fmt: skip
classifier("mixtral_cls", "Mixtral", **C, num_local_experts=4, num_experts_per_tok=2, num_labels=3)
classifier("gpt2_cls", "GPT2", vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=3,
           pad_token_id=0)  # fmt: skip
add("mbart", "MBartForConditionalGeneration", "MBartConfig", text, **BART, max_position_embeddings=64, pad_token_id=1)
add("swin", "SwinForImageClassification", "SwinConfig",
    lambda: {"pixel_values": noise(4, 3, 32, 32), "labels": CLASSES}, image_size=32, patch_size=4, embed_dim=16,
    depths=[1, 1], num_heads=[2, 4], window_size=4, num_labels=3)  # fmt: skip
add("llava", "LlavaForConditionalGeneration", "LlavaConfig", text, text_config=C | {"model_type": "llama"},
    vision_config=VISION | {"image_size": 32, "patch_size": 16, "model_type": "clip_vision_model"},
    image_token_index=95)  # fmt: skip
add("whisper_cls", "WhisperForAudioClassification", "WhisperConfig",
    lambda: {"input_features": noise(4, 8, 40), "labels": CLASSES}, **BART, num_mel_bins=8, max_source_positions=20,
    max_target_positions=30, num_labels=3, classifier_proj_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    decoder_start_token_id=1)  # fmt: skip
