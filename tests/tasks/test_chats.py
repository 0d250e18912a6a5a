"""Conversations in a field: one exchange is read, in either of two spellings; the rest is one line."""

import json

import pytest

from lorax.errors import UserError
from lorax.tasks import load


def openai(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(*turns):
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(role, role), "value": content} for role, content in turns]


def task(folder, make, **spec):
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(make(i)) + "\n" for i in range(40)))
    return load({"name": "jsonl", "path": str(path)} | spec, 0)


@pytest.mark.parametrize("spelt", [openai, sharegpt])
@pytest.mark.parametrize("spec", [{"prompt": "chat", "answer": "chat"}, {"prompt": "chat"}])
def test_an_exchange_is_prompt_and_answer_and_the_system_text_the_task_s(tmp_path, spelt, spec):
    with_system = task(
        tmp_path, lambda i: {"chat": spelt(("system", "Add."), ("user", f"{i} + 1"), ("assistant", str(i + 1)))}, **spec
    )
    example = with_system.train[0]
    assert int(example.prompt.removesuffix(" + 1")) + 1 == int(example.answer) and with_system.system == "Add."
    plain = task(tmp_path, lambda i: {"prompt": f"{i} + 1", "answer": i + 1}, system="Add.")
    assert with_system.digest == plain.digest
    without = task(tmp_path, lambda i: {"chat": spelt(("user", f"{i} + 1"), ("assistant", str(i + 1)))}, **spec)
    assert without.system is None and without.train == tuple(plain.train)


def test_a_prompt_that_is_a_conversation_and_an_answer_that_is_one(tmp_path):
    plain = task(tmp_path, lambda i: {"prompt": f"q{i}", "answer": f"a{i}"})
    text = task(tmp_path, lambda i: {"prompt": openai(("user", f"q{i}")), "answer": f"a{i}"})
    turn = task(tmp_path, lambda i: {"prompt": openai(("user", f"q{i}")), "answer": openai(("assistant", f"a{i}"))})
    parts = task(tmp_path, lambda i: {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": f"q{i}"}]}], "answer": f"a{i}"
    })  # fmt: skip
    assert plain.digest == text.digest == turn.digest == parts.digest


@pytest.mark.parametrize("chat, words", [
    (openai(("user", "q"), ("user", "r"), ("assistant", "a")), "3 turns (user, user, assistant); user and assistant"),
    (openai(("user", "q"), ("system", "s"), ("assistant", "a")), "3 turns (user, system, assistant); user and"),
    (openai(("system", "s")), "0 turns (); user and assistant are needed"),
    (openai(("user", "q"), ("tool", "t")), "message 2: a turn of a tool's (role 'tool'); calls of tools are not read"),
    (sharegpt(("user", "q"), ("function_call", "t")), "message 2: a turn of a tool's (role 'function_call')"),
    (openai(("user", "q"), ("narrator", "t")), "message 2: role 'narrator'; choose from"),
    (openai(("assistant", "a")), "1 turns (assistant); user and assistant are needed in alternation, the user first"),
    (openai(("user", "q")), "holds no turn of the assistant's"),
    (openai(("user", "q"), ("assistant", None)), "message 2: field 'content' is empty"),
    (openai(("user", "q"), ("assistant", ["a", "b"])), "message 2: field 'content' is a list of 2 texts"),
    ([*openai(("user", "q")), {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], "a call of a tool;"),
    ([{"role": "user", "content": [{"type": "image_url"}]}, *openai(("assistant", "a"))], "list of 1 objects"),
    ([], "field 'chat' is a list of 0 values"),
    ([{"speaker": "A", "text": "q"}], "field 'chat' is a list of 1 objects, not one text"),
    (["q", "a"], "field 'chat' is a list of 2 texts, not one text"),
])  # fmt: skip
def test_other_conversations_are_one_line(tmp_path, chat, words):
    with pytest.raises(UserError) as caught:
        task(tmp_path, lambda i: {"chat": chat}, prompt="chat", answer="chat")
    assert words in str(caught.value) and "chats.jsonl, line 1: field 'chat'" in str(caught.value)


def test_an_answer_given_twice_and_another_system_text_than_the_user_s_are_one_line(tmp_path):
    chat = openai(("user", "q"), ("assistant", "a"))
    with pytest.raises(UserError, match="fields 'chat' and 'answer' both hold an answer; task.answer=chat"):
        task(tmp_path, lambda i: {"chat": chat, "answer": "b"}, prompt="chat")
    with pytest.raises(UserError, match="line 1: another system text than task.system"):
        task(
            tmp_path,
            lambda i: {"chat": openai(("system", "s"), ("user", f"q{i}")) + chat[1:]},
            prompt="chat",
            system="t",
        )


def test_what_stands_in_a_text_classification_or_beside_no_answer_is_never_printed(tmp_path):
    with pytest.raises(UserError, match="line 1: field 'target' is empty"):
        task(tmp_path, lambda i: {"c": sharegpt(("user", f"{i}")), "target": float("nan")}, prompt="c", answer="target")
    with pytest.raises(UserError, match="field 'chat' is a list of 1 objects, not one text"):
        task(tmp_path, lambda i: {"chat": openai(("user", f"{i}")), "label": i % 2}, name="text_classification",
             text="chat")  # fmt: skip
