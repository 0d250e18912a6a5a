"""Prefix trees: one sequence that holds a common beginning once gives what whole rows give."""

import pytest
import torch
import transformers

from lorax.forward.batch import Encoded, pad_causal
from lorax.forward.modality import modality_of
from lorax.forward.prefix_tree import lay_out, takes_masks, tree
from lorax.models.registry import Loaded

BEGIN = list(range(30, 42))


def rows(*shapes):
    return [
        Encoded(BEGIN + [60 + place + at for at in range(n)], [80 + place, 90, 2][:labels], None)
        for place, (n, labels) in enumerate(shapes)
    ]


def outputs(loaded, batch):
    modality = modality_of(loaded)
    with modality.open():
        logits = modality.forward(batch)
    losses = modality.losses(logits, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), loaded.model.model.layers[0].mlp.up_proj.weight)
    return logits.detach(), gradient, batch.targets, batch.counts


@pytest.mark.parametrize("attention", ["sdpa", "sdpa_fp32"])
def test_one_sequence_says_what_whole_rows_say(toy, attention):
    loaded = toy(dtype="float64", attention=attention)
    several = rows((1, 2), (5, 3), (3, 1), (2, 3))
    for lanes in (1, 2):
        one, whole = (
            outputs(loaded, tree(several, loaded.tokenizer, 12, lanes)),
            outputs(loaded, pad_causal(several, 0)),
        )
        for mine, theirs in zip(one[:2], whole[:2], strict=True):
            assert torch.linalg.norm(mine - theirs) < 1e-6 * torch.linalg.norm(theirs)  # rotary angles are fp32
        assert torch.equal(one[2], whole[2]) and one[3] == whole[3]


def test_a_row_does_not_see_the_others(toy):
    loaded = toy(dtype="float64")
    first, second = rows((1, 2), (5, 3)), rows((1, 2), (5, 3))
    second[1].ids[-1] = 7
    told = [outputs(loaded, tree(part, loaded.tokenizer, 12))[0] for part in (first, second)]
    assert torch.equal(told[0][:2], told[1][:2]) and not torch.equal(told[0][2:], told[1][2:])


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "roberta", "falcon"])
def test_models_that_count_or_mask_otherwise(toy, kind):
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=512, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, num_local_experts=2, is_decoder=True, alibi=kind == "falcon",
        attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    modality = modality_of(Loaded(model, toy().tokenizer, "causal", kind, ""))
    several = rows(*[(2, 2), (4, 3)] * 4)
    batch = modality.collate(several)
    assert takes_masks(model) is (kind in ("gpt2", "mixtral")) is ("attention_mask" in batch.inputs)
    with modality.open(), torch.no_grad():
        parts = (batch, modality.collate(several, share=False))
        mine, whole = (modality.losses(modality.forward(part), part) for part in parts)
    torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


def test_padding_of_lanes_of_unequal_length_is_left_out(toy):
    loaded, several = toy(dtype="float64"), rows((1, 2), (2, 1), (20, 3), (20, 3))
    one = tree(several, loaded.tokenizer, 12, 2)
    assert len(one.unpadded) == 12 + 2 + 2 + 12 + 22 + 22 and one.inputs["input_ids"].shape == (2, 56)
    for mine, theirs in zip(outputs(loaded, one)[:2], outputs(loaded, pad_causal(several, 0))[:2], strict=True):
        assert torch.linalg.norm(mine - theirs) < 1e-6 * torch.linalg.norm(theirs)


def test_only_models_that_hand_a_mask_on_and_short_sequences_get_one(toy):
    several = rows(*[(2, 2)] * 8)
    assert lay_out(several, toy()).inputs.keys() == {"input_ids", "position_ids", "attention_mask"}
    assert lay_out(several, toy(), share=False).prefix is None
    eager = toy(attention="eager")
    assert not takes_masks(eager.model) and lay_out(several, eager).prefix.shape == (1, 12)
    assert lay_out(rows(*[(60, 2)] * 9), toy()).prefix is None  # the beginning is too small a share
    assert lay_out(several * 25, toy()).prefix is not None  # too long for one sequence
    assert lay_out(several * 25, toy(), single_pass=True).prefix is None
