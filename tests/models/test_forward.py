"""What the models compute: attention kernels agree, the mean ignores padding, the tokenizer loses nothing."""

import pytest
import torch

from lorax.models import load

TEXTS = ["I lost my card", "where is the nearest branch of my bank, please?"]


@pytest.mark.parametrize("name, labels", [("toy", None), ("minilm", ["a", "b"])])
@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("bfloat16", 0.1)])
def test_attention_kernels_agree_forward_and_backward(name, labels, dtype, bound):
    def run(attention):
        loaded = load({"name": name, "attention": attention}, labels=labels, dtype=dtype)
        assert loaded.attention == attention
        batch = loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")
        kept = batch["attention_mask"].bool() if labels is None else slice(None)
        logits = loaded.model(**batch).logits[kept].float()
        logits.square().mean().backward()
        layer = next(p for n, p in loaded.model.named_parameters() if n.endswith(("q_proj.weight", "query.weight")))
        return logits.detach(), layer.grad.float()

    for ours, reference in zip(run("sdpa_fp32"), run("eager"), strict=True):
        assert (ours - reference).norm() <= bound * reference.norm()


def test_fp32_attention_is_sdpa_bit_for_bit():
    logits = [
        load({"name": "toy", "attention": kernel}).model(torch.arange(20)[None]).logits
        for kernel in ("sdpa", "sdpa_fp32")
    ]
    assert torch.equal(*logits)


def test_16_bit_products_under_autocast_keep_fp32_attention():
    """Under autocast the kernel sees 16-bit inputs and must leave autocast to stay in fp32."""
    from lorax.models.attention import sdpa_fp32

    class Module(torch.nn.Module):
        is_causal = True

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 8, 16, generator=generator).bfloat16() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = sdpa_fp32(Module(), query, key, value, None)
    exact = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.transpose(1, 2).bfloat16())


def test_the_mean_is_over_tokens_not_padding():
    loaded = load({"name": "minilm"}, labels=["a", "b", "c"])
    batch = loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")
    alone = loaded.tokenizer(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        together, single = loaded.model(**batch).logits[0], loaded.model(**alone).logits[0]
        without_mask = loaded.model(input_ids=alone["input_ids"]).logits[0]
        hidden = loaded.model.bert(**alone).last_hidden_state[0].mean(0)
        by_hand = loaded.model.classifier(hidden)
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(single, by_hand)
    torch.testing.assert_close(single, without_mask)


def test_sentences_of_one_meaning_are_near():
    """The packaged weights are the real ones: paraphrases are closer than strangers."""
    loaded = load({"name": "minilm"}, labels=["a", "b"])
    batch = loaded.tokenizer(
        ["I lost my card", "my card is gone", "the weather is lovely today"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = loaded.model.bert(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    near, far = mean[0] @ mean[1], mean[0] @ mean[2]
    assert near > 0.6 > 0.3 > far


@pytest.mark.parametrize("text", ["plain", "é ü 漢字 🙂", " spaces  kept\n\ttoo", "3 + 4 = 7", "<|user|>hi<|end|>"])
def test_toy_tokenizer_is_lossless(text):
    tokenizer = load({"name": "toy"}).tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_toy_chat_template_and_special_tokens():
    tokenizer = load({"name": "toy"}).tokenizer
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 7 and ids[2] == tokenizer.eos_token_id != tokenizer.pad_token_id


@pytest.mark.slow
def test_smollm2_answers_in_words():
    """The converted model is the real one: it greets, and knows a capital."""
    loaded = load({"name": "smollm2"})
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    batch = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    out = loaded.model.generate(**batch, max_new_tokens=16, do_sample=False, pad_token_id=2)
    assert "Paris" in loaded.tokenizer.decode(out[0])
