"""Small mixtures of experts, with dense layers that are named like experts."""

import transformers as T

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
MODELS = {
    "deepseek_v3": lambda: T.DeepseekV3ForCausalLM(
        T.DeepseekV3Config(
            **SIZES, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=8,
            q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8,
            first_k_dense_replace=1,
        )
    ),
    "qwen2_moe": lambda: T.Qwen2MoeForCausalLM(
        T.Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=12)
    ),
    "qwen3_moe": lambda: T.Qwen3MoeForCausalLM(T.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=8, mlp_only_layers=[0])),
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(**SIZES, num_local_experts=4)),
    "llama4": lambda: T.Llama4ForCausalLM(
        T.Llama4TextConfig(
            **SIZES, head_dim=8, num_local_experts=2, intermediate_size_mlp=24, interleave_moe_layer_step=2
        )
    ),
    "jamba": lambda: T.JambaForCausalLM(
        T.JambaConfig(
            **SIZES, num_experts=2, num_experts_per_tok=1, expert_layer_period=2, expert_layer_offset=1,
            attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False,
        )
    ),
}  # fmt: skip
