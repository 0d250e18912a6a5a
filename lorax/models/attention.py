"""Which attention kernel: chosen by device, from measured steps.

On CPU, the backward pass of torch's bf16 flash attention is about ten times slower than that of its fp32
one (31 against 3.2 ms per call, 8 x 8 heads x 32 tokens, on a CPU with AMX). `sdpa_fp32` is torch's SDPA
computed in fp32, outside autocast, where the inputs have 16 bits and gradients are recorded. For fp32
inputs and in decoding it is SDPA itself, so one choice serves every precision. Seconds of one forward
and backward pass, LoRA r 8 on all linear layers:

    model, batch x tokens     precision        sdpa    eager   sdpa_fp32
    SmolLM2-135M, 8 x 64      bf16 autocast    1.09        -        0.93   (2 cores with AMX)
    MiniLM-L6, 32 x 32        bf16 autocast    0.26     0.16           -   (2 cores with AMX)
    MiniLM-L6, 8 x 32         bf16 autocast    0.66     0.63        0.62   (1 core, no bf16 units)
    SmolLM2-135M, 8 x 64      fp32             5.04     4.92        4.69   (the same)
    SmolLM2-135M, 4 x 160     fp32             5.53     5.76        6.01
    MiniLM-L6, 32 x 32        fp32             0.82     0.88        0.84
    MiniLM-L6, 8 x 128        fp32             0.73     0.79        0.86

In fp32 the three are within the spread between runs, about 10 %.
"""

from __future__ import annotations

from typing import Any

from lorax.errors import UserError, near

CHOICES = ("auto", "eager", "sdpa", "sdpa_fp32", "flex_attention", "flash_attention_2", "flash_attention_3")

BY_DEVICE = {"cpu": "sdpa_fp32", "cuda": "sdpa", "mps": "sdpa"}


def check(asked: Any) -> None:
    """Refuse a name of no implementation.

    Raises:
        UserError: with near misses.
    """
    if asked not in (None, *CHOICES):
        raise UserError(f"model.attention={asked}: {near(asked, CHOICES)}")


def choose(asked: str | None, device: str) -> str:
    """Return the attention implementation to load with.

    Args:
        asked: the configured value; None or "auto" for the fastest measured on such a device.
        device: cpu, cuda, cuda:1, mps.

    Raises:
        UserError: unknown implementation, with near misses.
    """
    check(asked)
    if asked in (None, "auto"):
        asked = BY_DEVICE.get(device.split(":")[0], "sdpa")
    if asked == "sdpa_fp32":
        register()
    return asked


def register() -> None:
    """Make `sdpa_fp32` known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register("sdpa_fp32", sdpa_fp32)
    AttentionMaskInterface.register("sdpa_fp32", sdpa_mask)


def sdpa_fp32(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """Compute scaled dot product attention in fp32 where gradients are recorded, in the inputs' dtype elsewhere.

    Args:
        module: the attention module.
        query: (batch, heads, T, head size).
        key: (batch, key heads, T', head size).
        value: as key.
        attention_mask: None or (batch, 1, T, T'), boolean or additive.
        kwargs: as transformers passes them (scaling, dropout, is_causal, ...).

    Returns:
        The output (batch, T, heads, head size) in the query's dtype, and None for the weights.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    dtype = query.dtype
    if dtype in (torch.float32, torch.float64) or not torch.is_grad_enabled():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        output, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **kwargs
        )
    return output.to(dtype), weights
