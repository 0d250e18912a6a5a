"""Scores by item: a pack's answers are those of transformers' own `generate`, run by run."""

import pytest
import torch
from small_training import encode
from tape import Tapes
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lorax.adapters.install import install
from lorax.api import attach, make_factors
from lorax.evaluation.evaluate import batches, evaluate, summarise
from lorax.forward.generation import CausalText
from lorax.forward.modality import modality_of
from lorax.forward.readout import caches_by_position
from lorax.initializers.registry import build
from lorax.training.loop import Run, TrainPlan, train


@pytest.fixture(scope="module")
def trained(toy, fresh_sums):
    """Three trained runs that know different amounts of the task: answers are right, partly right and wrong."""
    sums = fresh_sums()
    sums.system = "Compute."
    loaded = toy()
    made = [
        make_factors(loaded.model, build("lora", shared={"rank": 4, "alpha": 16}, own={}), seed=s) for s in range(3)
    ]
    handles = install(loaded.model, made)
    data = encode(sums, loaded, "test")  # on purpose: some answers are then reproduced to the end
    runs = [Run(adapters=a, data=data, lr=r, seed=0) for a, r in zip(handles, (3e-2, 1e-2, 1e-4), strict=True)]
    train(loaded, runs, TrainPlan(steps=50, batch_size=8))
    return loaded, handles, sums


def generated(loaded, task, split="test"):
    """The completions by transformers' own generate, item by item: no padding, no pack, no cache of ours."""
    completions = []
    for row in encode(task, loaded, split):
        ids = torch.tensor([row.ids])
        output = loaded.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=task.max_new_tokens,
            eos_token_id=loaded.tokenizer.eos_token_id, pad_token_id=0,
        )  # fmt: skip
        start = ids.shape[1] if loaded.kind == "causal" else 1
        completions.append(loaded.tokenizer.decode(output[0, start:], skip_special_tokens=True).strip())
    return completions


def test_a_pack_completes_as_generate_does_item_by_item(trained):
    loaded, handles, sums = trained
    items = evaluate(loaded, sums, "test", handles, batch_size=7)
    scores = [summarise(of_run)["score"] for of_run in items]
    assert scores[0] > scores[2] and 0 < sum(scores) < 3  # accepted, partly accepted and rejected answers all occur
    for handle, of_run in zip(handles, items, strict=True):
        with handle.pack.active([handle.number]):
            assert [item["completion"] for item in of_run] == generated(loaded, sums)
    for options in ({"verify": False}, {"share": False}, {"share": False, "verify": False}):
        slow_items = evaluate(loaded, sums, "test", handles, batch_size=7, modality=CausalText(loaded, **options))
        for slow, fast in zip(slow_items, items, strict=True):
            assert [row["completion"] for row in slow] == [row["completion"] for row in fast]
            assert [row["loss"] for row in slow] == pytest.approx([row["loss"] for row in fast], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("verify", [True, False])
def test_tokens_decoded_in_fixed_buffers_are_the_same(trained, verify):
    """Recorded once for a number of rows, replayed for later batches of it: three batches here, the last shorter."""
    loaded, handles, sums = trained
    items = evaluate(loaded, sums, "test", handles, batch_size=7, modality=CausalText(loaded, verify=verify))
    tapes = Tapes()
    static = CausalText(loaded, verify=verify, recorder=tapes)
    for slow, fast in zip(evaluate(loaded, sums, "test", handles, batch_size=7, modality=static), items, strict=True):
        assert [row["completion"] for row in slow] == [row["completion"] for row in fast]
    assert 1 <= len(tapes.tapes) <= 2 < tapes.replays
    again = evaluate(loaded, sums, "test", handles[:1], batch_size=7, modality=static)
    assert [row["completion"] for row in again[0]] == [row["completion"] for row in items[0]]


def test_losses_are_those_of_the_answer_alone(trained):
    loaded, handles, sums = trained
    [items] = evaluate(loaded, sums, "test", handles[:1])
    for item, row in zip(items, encode(sums, loaded, "test"), strict=True):
        with handles[0].pack.active([0]), torch.no_grad():
            logits = loaded.model(torch.tensor([row.ids + row.labels])).logits[0, len(row.ids) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels))
        assert item["loss"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        assert item["id"] == row.example.id and item["answer"] == row.example.answer and item["split"] == "test"


def test_the_base_is_evaluated_without_adapters_or_with_them_disabled(toy, sums):
    loaded = toy()
    before = evaluate(loaded, sums, "validation")
    adapters = attach(loaded.model, "lora", rank=2)
    with torch.no_grad():
        for value in adapters.parameters():
            value.normal_()
    assert evaluate(loaded, sums, "validation", [adapters]) != before
    with adapters.disabled():
        assert evaluate(loaded, sums, "validation", [adapters]) == before
    assert [item["id"] for item in before[0]] == [example.id for example in sums.validation]


def test_shots_change_the_prompt(toy, sums):
    loaded = toy()
    assert evaluate(loaded, sums, "validation", shots=True) != evaluate(loaded, sums, "validation")


def test_classes_are_scored_by_the_most_likely(toy, parity):
    loaded = toy(labels=parity.labels)
    [items] = evaluate(loaded, parity, "test", batch_size=5)
    for item, row in zip(items, encode(parity, loaded, "test"), strict=True):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([row.ids])).logits[0]
        assert item["completion"] == parity.labels[logits.argmax()]
        assert item["score"] == int(logits.argmax() == row.example.label)
        assert item["loss"] == pytest.approx(-logits.log_softmax(0)[row.example.label].item(), rel=1e-4)


MODELS = {
    "gpt2": (
        "causal", True,
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=261, n_embd=16, n_layer=2, n_head=2, eos_token_id=257)),
    ),
    "mpt": (
        "causal", False,
        lambda: MptForCausalLM(MptConfig(vocab_size=261, d_model=16, n_layers=2, n_heads=2, eos_token_id=257)),
    ),
    "t5": (
        "seq2seq", False,
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=261, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, eos_token_id=257,
                     pad_token_id=256, decoder_start_token_id=256)
        ),
    ),
    "bart": (
        "seq2seq", False,
        lambda: BartForConditionalGeneration(
            BartConfig(vocab_size=261, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                       decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, init_std=0.6,
                       eos_token_id=257, pad_token_id=256, decoder_start_token_id=256, forced_eos_token_id=None)
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_other_models_decode_as_generate_does(toy, sums, name):
    kind, verified, build_model = MODELS[name]
    torch.manual_seed(1)
    loaded = toy()
    loaded.model, loaded.kind = build_model().eval(), kind
    assert verified == (kind == "causal" and caches_by_position(loaded.model))
    sums.test = sums.test[:6]
    [items] = evaluate(loaded, sums, "test", batch_size=4)
    assert [item["completion"] for item in items] == generated(loaded, sums)


def test_batches_hold_every_item_once_longest_first(toy, sums):
    modality = modality_of(toy())
    rows = modality.encode(sums, "train")
    parts = list(batches(modality, sums, rows, 2, 16))
    assert sorted(sum(parts, [])) == list(range(len(rows)))
    assert max(map(len, parts)) == 16 and len(rows[parts[0][0]]) == max(map(len, rows))
    assert len(next(batches(modality, sums, rows, 400, None))) == 1  # 2^13 tokens are too few for 400 lanes
