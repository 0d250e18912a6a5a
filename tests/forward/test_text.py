"""Text as token ids: prompts, answers, shots, padding and the cache of encoded splits."""

import json

import pytest
import torch
from small_training import encode
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorax.errors import UserError
from lorax.forward import token_cache
from lorax.forward.batch import Encoded, order, pad_causal
from lorax.forward.generation import pad_seq2seq
from lorax.forward.modality import modality_of
from lorax.forward.prompts import causal_pair
from lorax.forward.sizes import Size


def test_prompt_and_answer_are_the_chat_template_s_own_text(toy, sums):
    loaded = toy()
    row = encode(sums, loaded, "train")[0]
    chat = [{"role": "user", "content": row.example.prompt}, {"role": "assistant", "content": row.example.answer}]
    whole = loaded.tokenizer.apply_chat_template(chat, tokenize=False)
    assert loaded.tokenizer.decode(row.ids + row.labels) == whole
    assert row.labels[-1] == loaded.tokenizer.eos_token_id and row.labels.count(row.labels[-1]) == 1


def test_shots_and_system_text_come_before_the_prompt(toy, sums):
    loaded = toy()
    sums.system = "Add."
    text = loaded.tokenizer.decode(encode(sums, loaded, "test", shots=True)[0].ids)
    shot = sums.shots[0]
    assert text.startswith(f"<|system|>Add.<|end|><|user|>{shot.prompt}<|end|><|assistant|>{shot.answer}<|end|>")
    assert text.endswith(f"<|user|>{sums.test[0].prompt}<|end|><|assistant|>")


def test_a_template_without_a_system_role_gets_its_text_in_the_first_turn(toy, sums):
    loaded = toy()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    thinking = "{% if add_generation_prompt and enable_thinking is not false %}<think>{% endif %}"
    loaded.tokenizer.chat_template = refusing + loaded.tokenizer.chat_template + thinking
    sums.system = "Add."
    row = encode(sums, loaded, "test", shots=True)[0]
    text = loaded.tokenizer.decode(row.ids)
    assert text.startswith(f"<|user|>Add.\n\n{sums.shots[0].prompt}<|end|>") and text.endswith("<|assistant|>")
    assert loaded.tokenizer.decode(row.labels) == f"{row.example.answer}<|end|>"


def test_labels_are_masked_by_position_so_the_end_is_learnt_though_it_is_the_padding(toy, sums):
    loaded = toy()
    loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    rows = encode(sums, loaded, "train")[:5]
    batch = pad_causal(rows, loaded.tokenizer.eos_token_id)
    ids = batch.inputs["input_ids"]
    flat, start = ids.flatten(), 0
    for number, row in enumerate(rows):
        places = batch.positions[start : start + len(row.labels)] - number * ids.shape[1]
        assert batch.targets[start : start + len(row.labels)].tolist() == row.labels
        assert (
            flat[number * ids.shape[1] + places[0]] == row.ids[-1]
        )  # the answer is predicted from the prompt's end on
        assert ids[number, places[1:]].tolist() == row.labels[:-1]
        start += len(row.labels)
    assert start == len(batch.targets) == sum(batch.counts)
    assert (batch.targets == loaded.tokenizer.eos_token_id).sum() == len(rows)


def test_without_a_template_the_tokenizer_s_own_start_token_is_kept_and_the_end_added():
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "what", "is", "it", "four", "\n"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="it"))
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), backend.pre_tokenizer])
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert causal_pair(tokenizer, None, [], "what is it", "four") == ([0, 2, 3, 4, 6], [5, 1])


def test_classes_are_encoded_as_one_label(toy, parity):
    loaded = toy(labels=parity.labels)
    rows = encode(parity, loaded, "train")
    batch = modality_of(loaded).collate(rows[:4])
    assert [row.labels for row in rows] == [[example.label] for example in parity.train]
    assert batch.inputs["attention_mask"].sum(1).tolist() == [len(row.ids) for row in rows[:4]]


def test_an_example_too_long_for_the_model_is_named(toy, sums):
    with pytest.raises(UserError, match=r"toy train: example 2.10= has 11 tokens, the model takes 9"):
        encode(sums, toy(context=9), "train")


def test_the_token_cache_is_addressed_by_content(toy, sums, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAX_CACHE", str(tmp_path))
    monkeypatch.setattr(token_cache, "SMALLEST", 1)
    loaded = toy()
    first = encode(sums, loaded, "train")
    (path,) = (tmp_path / "tokens").iterdir()
    assert encode(sums, loaded, "train") == first
    pairs = json.loads(path.read_text())
    path.write_text(json.dumps([[[1], [2]]] * len(pairs)))
    assert encode(sums, loaded, "train")[0].ids == [1]  # it is read
    path.write_text("broken")
    assert encode(sums, loaded, "train") == first  # and made again
    sums.system = "Other."
    assert encode(sums, loaded, "train") != first


def test_the_order_is_full_epochs_moved_by_the_seed_alone():
    batches = order(3, 10, 4, 5)
    assert order(3, 10, 4, 5) == batches != order(4, 10, 4, 5)
    stream = sum(batches, [])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert order(3, 10, 4, 9)[:5] == batches  # a longer run sees the same batches first
    assert order(0, 3, 8, 1)[0] and len(order(0, 3, 8, 1)[0]) == 8


def test_seq2seq_predicts_the_answer_from_the_start_token():
    rows = [Encoded([5, 6, 1], [7, 8, 1], None), Encoded([5, 1], [9, 1], None)]
    batch = pad_seq2seq(rows, pad=0, start=0)
    assert torch.equal(batch.inputs["decoder_input_ids"], torch.tensor([[0, 7, 8], [0, 9, 0]]))
    assert batch.positions.tolist() == [0, 1, 2, 3, 4] and batch.targets.tolist() == [7, 8, 1, 9, 1]


def test_batches_move_whole(toy, sums):
    modality = modality_of(toy())
    batch = modality.collate(modality.encode(sums, "train")[:2]).to("meta")
    assert batch.positions.is_meta and batch.targets.is_meta and batch.inputs["input_ids"].is_meta


def test_a_batch_that_fills_a_shape_says_the_same():
    rows = [Encoded([5] * n, [1, 2], None) for n in (3, 4)]
    own, filled = pad_causal(rows, 0), pad_causal(rows, 0, size=Size(8, 7, 6))
    assert filled.inputs["input_ids"].shape == (2, 8) and len(filled.targets) == len(filled.positions) == 7
    for batch in (own, filled):
        ids = batch.inputs["input_ids"]
        assert ids[:, :5].tolist() == own.inputs["input_ids"].tolist() and not ids[:, 5:].any()
        assert [divmod(int(at), ids.shape[1]) for at in batch.positions[:4]] == [(0, 2), (0, 3), (1, 3), (1, 4)]
        assert batch.targets[:4].tolist() == [1, 2, 1, 2] and batch.counts == [2, 2]
    assert own.room is None and filled.room == 6
