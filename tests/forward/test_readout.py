"""Logits at chosen positions: the whole model's, at less cost, and the head is as before."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lorax.forward.batch import Encoded, pad_causal
from lorax.forward.modality import modality_of
from lorax.forward.readout import Readout
from lorax.models.registry import Loaded

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "gemma2 soft-capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=0.05)),
    "cohere scaled": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3)),
    "granite divided": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "gpt2 tied": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)),
    "bloom alibi": lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
    "bart biased": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=40,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )  # fmt: skip
    ),
}


class _Tokens:
    pad_token_id, eos_token_id = 0, 2


@pytest.mark.parametrize("name", MODELS)
def test_logits_at_the_labels_are_those_of_the_whole_model(name):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    kind = "seq2seq" if name.startswith(("t5", "bart")) else "causal"
    loaded = Loaded(model, _Tokens, kind, name, "")
    head, seen = model.get_output_embeddings(), []
    plain = head.forward
    head.forward = lambda hidden: seen.append(hidden.flatten(0, -2).shape[0]) or plain(hidden)
    rows = [Encoded([5, 6, 7, 8], [9, 2], None), Encoded([5, 6], [3, 4, 2], None)]
    batch = modality_of(loaded).collate(rows, share=False)
    with Readout(model) as readout:
        some = readout(batch.inputs, batch.positions)
    assert seen == [len(batch.targets)]  # the head's product has no other rows
    whole = model(**batch.inputs, use_cache=False).logits
    assert whole.ndim == 3 and torch.allclose(some, whole.flatten(0, 1)[batch.positions], atol=1e-12)


def test_the_head_is_cast_once_for_autocast_and_left_as_it_was(toy, monkeypatch):
    loaded, used, linear = toy(), [], torch.nn.functional.linear
    batch = pad_causal([Encoded([5, 6, 7], [9, 257], None)], 0)
    loaded.model.requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = loaded.model(**batch.inputs).logits[0]
        monkeypatch.setattr(torch.nn.functional, "linear", lambda x, W, b=None: used.append(W) or linear(x, W, b))
        with Readout(loaded.model) as readout:
            first = readout(batch.inputs, batch.positions)
            readout(batch.inputs, batch.positions)
    heads = [W for W in used if W.shape == loaded.model.lm_head.weight.shape]
    assert len(heads) == 2 and heads[0] is heads[1] and heads[0].dtype == torch.bfloat16
    assert torch.equal(first, whole[batch.positions]) and "forward" not in vars(loaded.model.lm_head)


def test_a_head_that_is_not_called_gives_the_full_logits(toy):
    loaded = toy()
    batch = pad_causal([Encoded([5, 6, 7], [9, 257], None)], 0)
    whole = loaded.model(**batch.inputs).logits[0]
    head, loaded.model.lm_head = loaded.model.lm_head, torch.nn.Identity()
    loaded.model.get_output_embeddings = lambda: head
    loaded.model.lm_head.forward = lambda hidden: torch.nn.functional.linear(hidden, head.weight)
    with Readout(loaded.model) as readout:
        some = readout(batch.inputs, batch.positions)
    assert torch.equal(some, whole[batch.positions])
