"""Multimodal language models: text layers under all-linear, towers when named, LoRA-GA on text batches."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as T  # noqa: N812

import lorax
from lorax.adapters.targets import select
from lorax.architecture.towers import OUTSIDE

TEXT = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
IDS = torch.randint(3, 90, (4, 9), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": IDS}


def gemma3():
    vision = VISION | {"image_size": 28, "patch_size": 14}
    config = T.Gemma3Config(text_config=TEXT | {"head_dim": 8}, vision_config=vision, mm_tokens_per_image=4)
    return T.Gemma3ForConditionalGeneration(config)


def qwen2vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"embed_dim": 32, "depth": 1, "num_heads": 4, "hidden_size": 32, "mlp_ratio": 2}
    return T.Qwen2VLForConditionalGeneration(
        T.Qwen2VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision)
    )


def llava():
    vision = T.CLIPVisionConfig(**VISION, image_size=28, patch_size=14)
    return T.LlavaForConditionalGeneration(T.LlavaConfig(text_config=T.LlamaConfig(**TEXT), vision_config=vision))


def qwen2audio():
    audio = {"num_mel_bins": 8, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4,
             "encoder_ffn_dim": 48, "max_source_positions": 20}  # fmt: skip
    config = T.Qwen2AudioConfig(audio_config=audio, text_config={"model_type": "qwen2"} | TEXT)
    return T.Qwen2AudioForConditionalGeneration(config)


def clip():
    text = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    vision = VISION | {"image_size": 32, "patch_size": 16}
    return T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def whisper():
    return T.WhisperForConditionalGeneration(
        T.WhisperConfig(
            vocab_size=96, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48, decoder_ffn_dim=48,
            encoder_attention_heads=4, decoder_attention_heads=4, num_mel_bins=8, max_source_positions=20,
            max_target_positions=30, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip


SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (qwen2vl, llava, qwen2audio)]


@pytest.mark.parametrize("make", [gemma3, *SLOW])
def test_text_layers_by_default_and_towers_when_named(make):
    with torch.device("meta"):
        model = make()
    selection = select(model)
    assert len(selection.chosen) == 14 and all("language_model" in name for name in selection.chosen)
    towers = {name for name, why in selection.left_out.items() if why == OUTSIDE}
    assert towers and not any("language_model" in name for name in towers)
    named = [min(towers)]
    assert list(select(model, named).chosen) == named
    wide = select(model, r".*(tower|visual|projector).*")
    assert towers == {*wide.chosen, *wide.left_out}


@pytest.mark.parametrize("make", [clip, whisper])
def test_models_that_need_both_senses_keep_them(make):
    with torch.device("meta"):
        selection = select(make())
    assert OUTSIDE not in selection.left_out.values()


@pytest.mark.parametrize("make", [gemma3, SLOW[1]])
def test_lora_ga_on_text_batches_trains_every_adapter(make):
    torch.manual_seed(0)
    model = make()
    with pytest.warns(UserWarning, match="left out .*outside the language model: text alone does not reach it"):
        adapters = lorax.attach(model, init="lora_ga", rank=2, batches=[BATCH])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the first forward pass calls every adapted layer
        model(**BATCH).loss.backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


def test_a_named_tower_that_text_does_not_reach_is_reported():
    model = gemma3()
    adapters = lorax.attach(model, rank=2, targets=r"model\.vision_tower\..*fc1|q_proj")
    with pytest.warns(UserWarning, match="the first forward pass did not call model.vision_tower.*fc1"):
        model(**BATCH).loss.backward()
    assert any(parameter.grad is not None for parameter in adapters.parameters())
