"""What was given to a chat template comes out of it, or one line says what does not."""

import warnings

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorax.errors import UserError
from lorax.forward import chat_template
from lorax.forward.prompts import announce, causal_pair, prompt_text
from lorax.models.registry import load

SYSTEM, QUESTION, SHOTS = "Answer with a number.", "What is 2 + 2?", (("What is 1 + 1?", "2"),)
START = "{% if add_generation_prompt %}<assistant>{% endif %}"
DEFAULT = "{% if messages[0].role != 'system' %}<system>You are Smol.\n{% endif %}"
EVERY = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(chat_template, "_said", set())
    monkeypatch.setattr(chat_template, "_tried", {})


def tokenizer(template):
    characters = ["<s>", "</s>", "<unk>", *map(chr, range(32, 127)), "\n"]
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = template
    return made


def decoded(made, ids):
    return "".join(made.convert_ids_to_tokens(ids))


IGNORES = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}\n{% endfor %}" + START
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template, why", [
    (IGNORES, "leaves out the system role"),
    (REFUSES + EVERY + START, r"refuses system, user \(System role not supported\)"),
    (ALTERNATES + EVERY + START, "must alternate"),
    ("{{ messages[0].content + 1 if messages[0].role == 'system' else '' }}" + EVERY + START, "refuses system, user"),
])  # fmt: skip
def test_a_template_without_a_system_role_gets_its_text_in_the_first_turn_and_that_is_said_once(template, why):
    made = tokenizer(template)
    with pytest.warns(
        UserWarning, match=f"the chat template: .*{why}.*; the system text goes into the first user turn"
    ):
        text = prompt_text(made, SYSTEM, (), QUESTION)
    assert text == f"<user>{SYSTEM}\n\n{QUESTION}\n<assistant>"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shots = prompt_text(made, SYSTEM, SHOTS, QUESTION)
        announce(made, SYSTEM)
        ids, labels = causal_pair(made, SYSTEM, (), QUESTION, "4")
    assert shots == f"<user>{SYSTEM}\n\n{SHOTS[0][0]}\n<assistant>2\n<user>{QUESTION}\n<assistant>"
    assert decoded(made, ids) == text and decoded(made, labels) == "4\n</s>"
    with pytest.warns(UserWarning, match="the system text goes into"):  # a split from the cache is no silence
        chat_template._said.clear()
        announce(made, SYSTEM)


@pytest.mark.parametrize("template, expected", [
    (EVERY + START, "<system>S\n<user>u\n<assistant>"),
    # One that adds a default: what is given replaces it.
    (DEFAULT + EVERY + START, "<system>S\n<user>u\n<assistant>"),
    # Mistral's: the system text stands in the last turn of the user's.
    ("{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ messages[0].content + ' ' if loop.last and "
     "messages[0].role == 'system' }}{{ m.content }}\n{% endfor %}" + START, "<user>S u\n<assistant>"),
    ("{% for m in messages %}<{{ m.role }}>{{ m.content | trim | upper }}\n{% endfor %}" + START,
     "<system>S\n<user>U\n<assistant>"),
])  # fmt: skip
def test_a_template_that_keeps_the_system_text_is_left_alone(template, expected):
    made = tokenizer(template)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompt_text(made, "S", (), "u") == expected
        spaced = prompt_text(made, " S \n", (), " u ")
        assert "".join(spaced.split()) == "".join(expected.split())


def test_a_default_system_text_of_the_template_stays_where_none_is_given():
    made = tokenizer(DEFAULT + EVERY + START)
    assert prompt_text(made, None, (), "u") == "<system>You are Smol.\n<user>u\n<assistant>"


@pytest.mark.parametrize("template, turns, words", [
    ("{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}" + START, (), "leaves out the user's"),
    ("hello" + START, (), "leaves out the user's text"),
    ("{% for m in messages %}{{ m.content[:9] }}{% endfor %}" + START, (), "leaves out the user's text"),
    ("{{ messages[-1].content }}" + START, SHOTS, "leaves out the user's text"),
    ("{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}" + START, (("1?", "a"),),
     "leaves out the assistant's text"),
    ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", (), "the user's"),
    ("{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + EVERY, SHOTS, "one turn only"),
    ("{% for m in messages %}{{ m.content", (), "refuses user .unexpected end of template"),
    ({"a": EVERY, "b": EVERY}, (), "refuses user .This model has multiple chat templates"),
])  # fmt: skip
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_a_template_that_leaves_out_what_was_asked_is_one_line(template, turns, words, system):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=f"the chat template: .*{words}") as caught:
            prompt_text(tokenizer(template), system, turns, QUESTION)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("template", [
    "{% for m in messages if m.role != 'assistant' %}<{{ m.role }}>{{ m.content }}\n{% endfor %}" + START,
    "{% for m in messages if m.role != 'assistant' %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>",
    "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no answers') }}{% endif %}" + EVERY + START,
    "{% for m in messages %}<{{ m.role }}>{{ m.content | upper if m.role == 'assistant' else m.content }}\n{% endfor %}"
    + START,
])  # fmt: skip
def test_an_answer_that_the_template_leaves_out_or_changes_is_trained_on_as_it_is(template):
    made = tokenizer(template)
    ids, labels = causal_pair(made, None, (), QUESTION, "Four")
    assert decoded(made, ids) == f"<user>{QUESTION}\n<assistant>" and decoded(made, labels) == "Four</s>"


@pytest.mark.slow
def test_smollm2_gets_the_prompts_that_its_records_were_made_with():
    made = load({"name": "smollm2"}).tokenizer
    assert prompt_text(made, "Answer with only the final answer.", (), "80 - 70 =") == (
        "<|im_start|>system\nAnswer with only the final answer.<|im_end|>\n<|im_start|>user\n80 - 70 =<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt_text(made, None, (), "80 - 70 =") == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n80 - 70 =<|im_end|>\n<|im_start|>assistant\n"
    )
    assert made.decode(causal_pair(made, None, (), "80 - 70 =", "10")[1]) == "10<|im_end|>"


def test_without_a_template_the_text_is_plain():
    made = tokenizer(None)
    assert prompt_text(made, SYSTEM, SHOTS, QUESTION) == f"{SYSTEM}\n\nWhat is 1 + 1?\n2\n\n{QUESTION}\n"
    announce(made, SYSTEM)
