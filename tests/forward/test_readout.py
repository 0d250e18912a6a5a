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
from lorax.forward.generation import pad_seq2seq
from lorax.forward.logits import chunked_loss
from lorax.forward.logits.tail import Tail
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


def batch_for(model):
    rows = [Encoded([3, 4, 5][: 2 + i], [7, 8, 9, 2][i:], None) for i in range(2)]
    return pad_seq2seq(rows, 0, 0) if model.config.is_encoder_decoder else pad_causal(rows, _Tokens.pad_token_id)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("trains", [False, True])
def test_chunks_give_the_losses_and_gradients_of_the_whole(name, trains, monkeypatch):
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    inner = model.get_submodule(next(name for name, module in model.named_modules() if "norm" in name or "ln" in name))
    head = model.get_output_embeddings()
    leaves = [next(inner.parameters()), *(head.parameters() if trains else [])]
    for leaf in leaves:
        leaf.requires_grad_(True)
    batch, seen = batch_for(model), []
    with Readout(model) as readout:
        whole = readout.losses(batch)
        monkeypatch.setattr(chunked_loss, "FROM", 1)
        monkeypatch.setattr(chunked_loss, "CHUNK", 3 * 40)
        logits = chunked_loss.token_losses
        monkeypatch.setattr(chunked_loss, "token_losses", lambda *args: seen.append(len(args[0])) or logits(*args))
        chunked = readout.losses(batch)
        weights = torch.rand(len(whole))
        expected = torch.autograd.grad(whole @ weights, leaves)
        found = torch.autograd.grad(chunked @ weights, leaves)
    assert torch.allclose(whole, chunked, rtol=1e-6, atol=1e-6) and len(whole) == 7
    assert set(seen) == {3, 1}
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() <= 1e-6 * (1 + other.norm()) and other.norm() > 0
    assert "forward" not in vars(head)


def test_few_logits_are_computed_at_once_as_ever(monkeypatch):
    model = MODELS["gpt2 tied"]().eval()
    monkeypatch.setattr(Tail, "of", None)
    with Readout(model) as readout:
        assert len(readout.losses(batch_for(model))) == 7


def test_of_many_logits_a_chunk_is_held(monkeypatch):
    """2,048 labels over 20,000 tokens: 164 MB of logits in fp32, three times that with their softmax and gradient."""
    hidden, weight = torch.randn(512, 16, requires_grad=True), torch.randn(5000, 16)
    targets = torch.randint(0, 5000, (512,))
    monkeypatch.setattr(chunked_loss, "CHUNK", 64 * 5000)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        chunked_loss.chunked_losses(hidden, weight, None, targets).sum()
    plain = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: plain.append(x.nbytes) or x, lambda x: x):
        chunked_loss.token_losses(hidden @ weight.T, targets).sum()
    assert sum(kept) == hidden.nbytes and sum(plain) > 512 * 5000 * 4


def test_bf16_products_give_losses_in_full_precision():
    hidden, weight = torch.randn(9, 16).bfloat16().requires_grad_(), torch.randn(50, 16).bfloat16()
    targets = torch.randint(0, 50, (9,))
    losses = chunked_loss.chunked_losses(hidden, weight, None, targets)
    whole = chunked_loss.token_losses(hidden @ weight.T, targets)
    assert losses.dtype == torch.float32 and torch.equal(losses, whole)
    mine, other = (torch.autograd.grad(each.sum(), hidden)[0] for each in (losses, whole))
    assert (mine - other).float().norm() < 1e-2 * other.float().norm()
