"""Labels of conversations: those of a trainer that masks by the template's own marks, for any template."""

from dataclasses import replace

import pytest
import torch
from small_training import encode

from lorax.errors import UserError
from lorax.forward.batch import pad_causal
from lorax.forward.modality import modality_of
from lorax.models.toy import TEMPLATE
from lorax.tasks.base import Example

HISTORY = (("Hi", "Hello"), ("How are you?", "Well, thank you"))
CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def conversation(sums, system=None, all_turns=True):
    example = Example("1", "And 1+1?", "2", history=HISTORY, system=system, all_turns=all_turns)
    sums.train = [example, *[replace(one, id=one.id) for one in sums.train]]
    return example


def messages(system=None):
    turns = [{"role": "system", "content": system}] if system else []
    for question, answer in (*HISTORY, ("And 1+1?", "2")):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def labelled(row, pad=0):
    """(token, whether it is a label) of a row, from the batch that is trained on."""
    batch = pad_causal([row], pad)
    ids = [*batch.inputs["input_ids"][0].tolist(), row.labels[-1]]
    marks = [False] * len(ids)
    for place, target in zip(batch.positions.tolist(), batch.targets.tolist(), strict=True):
        assert ids[place + 1] == target
        marks[place + 1] = True
    return ids, marks


@pytest.mark.parametrize("system", [None, "Add."])
def test_the_labels_are_those_of_a_template_that_marks_what_the_assistant_says(toy, sums, system):
    """TRL's assistant_only_loss masks by transformers' assistant_masks; so does this, and the answers are the same."""
    loaded = toy()
    loaded.tokenizer.chat_template = CHATML
    conversation(sums, system)
    ids, marks = labelled(encode(sums, loaded, "train")[0])
    marked = loaded.tokenizer.apply_chat_template(
        messages(system), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == marked["input_ids"][: len(ids)]  # the template goes on with a line break behind the last end token
    assert [int(mark) for mark in marks] == marked["assistant_masks"][: len(ids)]
    assert not any(marked["assistant_masks"][len(ids) :])


def test_a_whole_conversation_has_the_labels_and_losses_of_its_turns_one_by_one(toy, sums):
    loaded = toy()
    example = conversation(sums)
    parts = [replace(example, prompt=HISTORY[0][0], answer=HISTORY[0][1], history=()),
             replace(example, prompt=HISTORY[1][0], answer=HISTORY[1][1], history=HISTORY[:1], all_turns=False),
             replace(example, all_turns=False)]  # fmt: skip
    modality, rows = modality_of(loaded), encode(sums, loaded, "train")
    single = modality.rows(None, [], parts)
    assert rows[0].labels == [token for row in single for token in row.labels]
    with torch.no_grad(), modality.open():

        def losses(batch):
            return modality.losses(modality.forward(batch), batch)

        apart = torch.cat([losses(modality.collate([row])) for row in single])
        torch.testing.assert_close(losses(modality.collate(rows[:1])), apart, atol=2e-5, rtol=0)
        mixed = modality.collate(rows[:3] * 2, 2)
        torch.testing.assert_close(losses(mixed)[: len(apart)], apart, atol=2e-5, rtol=0)
        shared = [rows[0], replace(rows[0], example=rows[0].example)] * 8  # a common beginning, in a tree
        torch.testing.assert_close(losses(modality.collate(shared)), apart.repeat(16), atol=2e-5, rtol=0)
        filled = modality.fill(rows[:3], 1, modality.shapes([rows[:3]], 1))
        torch.testing.assert_close(losses(filled)[: len(apart)], apart, atol=2e-5, rtol=0)
    assert rows[0].last() == replace(single[2], example=rows[0].example)
    assert len(rows[0]) == len(single[2]) and len(rows[0].ids) == len(single[0].ids)


def test_the_last_turn_alone_and_the_score_see_all_turns_before(toy, sums):
    loaded = toy()
    conversation(sums, all_turns=False)
    row = encode(sums, loaded, "train")[0]
    assert loaded.tokenizer.decode(row.ids + row.labels) == loaded.tokenizer.apply_chat_template(
        messages(), tokenize=False
    )
    assert loaded.tokenizer.decode(row.labels) == "2<|end|>" and not row.given


ALTERING = TEMPLATE.replace(
    "message['content']", "(message['content'] if loop.last or message['role'] != 'assistant' else 'said')"
)
THINKING = TEMPLATE.replace(
    "message['content']",
    "('<think></think>' if loop.last and message['role'] == 'assistant' else '') + message['content']",
).replace("'<|assistant|>' }}{% endif", "'<|assistant|><think></think>' }}{% endif")  # fmt: skip
CLOSING = TEMPLATE.replace("+ '<|end|>'", "+ '|'") + "{% if not add_generation_prompt %}{{ '<|end|>' }}{% endif %}"


@pytest.mark.parametrize("template, words", [
    (ALTERING, "leaves out the assistant's text"),
    (THINKING, "alters earlier turns of the assistant's once others follow; task.turns=last"),
    (None, "the tokenizer has none; task.turns=last"),
])  # fmt: skip
def test_templates_that_alter_earlier_turns_are_refused(toy, sums, template, words):
    loaded = toy()
    loaded.tokenizer.chat_template = template
    conversation(sums)
    with pytest.raises(UserError, match=words):
        encode(sums, loaded, "train")
    if template != ALTERING:
        sums.train[0] = replace(sums.train[0], all_turns=False)
        assert loaded.tokenizer.decode(encode(sums, loaded, "train")[0].labels) == "2<|end|>"


def test_a_template_that_closes_the_whole_conversation_ends_the_last_turn_alone(toy, sums):
    loaded = toy()
    loaded.tokenizer.chat_template = CLOSING
    conversation(sums)
    row = encode(sums, loaded, "train")[0]
    assert loaded.tokenizer.decode(row.labels) == "Hello|Well, thank you|2|<|end|>"


def test_rows_are_cut_on_the_right_and_it_is_said(toy, sums):
    loaded = toy()
    example = conversation(sums)
    sums.train = [replace(example, history=(("Hello there", "Hi"), HISTORY[1])), *sums.train[1:3]]
    whole = encode(sums, loaded, "train")[0]
    sums.max_length = len(whole.ids) + 3
    modality = modality_of(loaded)
    rows = modality.encode(sums, "train")
    assert (rows[0].labels, rows[0].given, len(rows[0])) == (whole.labels[:3], (), sums.max_length)
    assert modality.remarks == [f"toy train: 1 of 3 examples cut at {sums.max_length} tokens"]
    assert rows[1:] == encode(sums, loaded, "train")[1:]
    sums.max_length = len(whole.ids) + len(whole.labels)  # inside the last of the two given parts or after it
    cut = modality_of(loaded).encode(sums, "train")[0]
    assert [*cut.ids, *cut.continuation, cut.labels[-1]] == [*whole.ids, *whole.continuation][: len(cut)]
    sums.max_length = len(whole.ids)
    modality = modality_of(loaded)
    assert len(modality.encode(sums, "train")) == 2
    assert modality.remarks[0].endswith("1 of 3 examples cut at 14 tokens, 1 of them dropped: no answer left")
    sums.max_length = 1
    with pytest.raises(UserError, match="task.max_length=1: no train example of toy fits"):
        encode(sums, loaded, "train")
