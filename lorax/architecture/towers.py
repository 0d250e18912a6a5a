"""Multimodal language models: which part of them reads text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lorax.architecture.heads import output_embeddings

OUTSIDE = "outside the language model: text alone does not reach it; name it in targets to adapt it"
_SENSES = ("vision_config", "audio_config", "speech_config", "image_config", "video_config")


def outside_the_language_model(modules: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of modules that are no part of the language model of a multimodal one; else an empty set.

    A multimodal language model has an output head for tokens, and a configuration with one part for text and one for
    images or sound (Gemma-3, Qwen2-VL, LLaVA). A model without such a head (CLIP), or one whose encoder is the other
    sense (Whisper), needs all its parts.

    Args:
        modules: {name: module} of the whole model.
    """
    root = modules[""]
    config: Any = getattr(root, "config", None)
    text = getattr(config, "text_config", None)
    if text is None or output_embeddings(root) is None or not any(getattr(config, key, None) for key in _SENSES):
        return set()
    inside = [name for name, module in modules.items() if name and getattr(module, "config", None) is text]
    tops = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside if other != name)]
    if not tops:
        return set()
    return {
        name
        for name in modules
        if name and not any(name == top or name.startswith(f"{top}.") or top.startswith(f"{name}.") for top in tops)
    }
