"""Conversations of several turns, and columns that say by their names what a row is."""

import json

import pytest

from lorax.errors import UserError
from lorax.tasks import load


def openai(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(*turns):
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(role, role), "value": content} for role, content in turns]


def task(folder, make, rows=60, test=None, **spec):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(make(i)) + "\n" for i in range(rows)))
    if test is not None:
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
        spec["test"] = str(folder / "test.jsonl")
    return load({"name": "jsonl", "path": str(path)} | spec, 0)


def two(i, system=None):
    before = [("system", system)] if system else []
    return (*before, ("user", f"q{i}"), ("assistant", f"a{i}"), ("user", f"r{i}"), ("assistant", f"b{i}"))


@pytest.mark.parametrize("field, spelt", [("messages", openai), ("conversations", sharegpt)])
def test_conversations_are_read_without_a_key_and_their_last_turn_is_the_answer(tmp_path, field, spelt):
    chats = task(tmp_path, lambda i: {"id": i, field: spelt(*two(i))})
    example = chats.train[0]
    number = example.answer[1:]
    assert (example.prompt, example.history) == (f"r{number}", ((f"q{number}", f"a{number}"),))
    assert all(example.all_turns for example in (*chats.train, *chats.heldout))
    assert not any(example.all_turns for example in (*chats.test, *chats.validation))
    assert f"read as conversations in the field '{field}'" in chats.notes["data"]
    assert "60 of 60 are conversations of several turns, loss on all turns of the assistant's" in chats.notes["data"]
    last = task(tmp_path, lambda i: {"id": i, field: spelt(*two(i))}, turns="last")
    assert not any(example.all_turns for example in last.train) and "loss on the last turn" in last.notes["data"]
    named = task(tmp_path, lambda i: {"id": i, field: spelt(*two(i))}, prompt=field, answer=field)
    assert named.digest == chats.digest != last.digest


@pytest.mark.parametrize("turns", ["first", "", None])
def test_turns_are_all_or_the_last(tmp_path, turns):
    with pytest.raises(UserError, match=f"task.turns={turns}: "):
        task(tmp_path, lambda i: {"messages": openai(*two(i))}, turns=turns)


def test_alpaca_s_columns_are_instruction_and_input_and_may_be_left_out(tmp_path):
    rows = task(tmp_path, lambda i: {"instruction": f"Do {i}.", "output": i, **({"input": f"x{i}"} if i % 2 else {})})
    prompts = {example.answer: example.prompt for example in rows.train}
    assert all(prompts[n] == (f"Do {n}.\nx{n}" if int(n) % 2 else f"Do {n}.") for n in prompts)
    assert r"prompts made of '{instruction}\\n{input}', answers in the field 'output'" in rows.notes["data"]
    told = task(tmp_path, lambda i: {"instruction": f"Do {i}.", "input": "", "output": i, "system": f"Be {i % 2}.",
                                     "history": [["Hi", f"Hello {i}"]]})  # fmt: skip
    example = told.train[0]
    assert (
        example.history == (("Hi", f"Hello {example.answer}"),) and example.system == f"Be {int(example.answer) % 2}."
    )
    with pytest.raises(UserError, match="line 1: field 'history', item 1: not a question with its answer"):
        task(tmp_path, lambda i: {"instruction": f"{i}", "output": i, "history": ["Hi"]})
    with pytest.raises(UserError, match="line 1: field 'history' is not a list of questions with their answers"):
        task(tmp_path, lambda i: {"instruction": f"{i}", "output": i, "history": 5})


def test_columns_that_are_asked_for_come_before_those_that_are_known(tmp_path):
    both = task(tmp_path, lambda i: {"prompt": f"p{i}", "answer": f"a{i}", "messages": openai(*two(i))})
    assert both.train[0].prompt.startswith("p") and "read as" not in both.notes["data"]
    chat = task(tmp_path, lambda i: {"prompt": f"p{i}", "prompt_id": i, "messages": openai(*two(i))})  # UltraChat
    assert chat.train[0].history
    assert task(tmp_path, lambda i: {"prompt": f"p{i}", "completion": f"c{i}"}).train[0].answer.startswith("c")
    parts = task(tmp_path, lambda i: {"prompt": openai(("user", f"p{i}")), "completion": openai(("assistant", "c"))})
    assert parts.train[0].answer == "c"
    with pytest.raises(UserError, match="line 1: no field 'prompt'; .*text"):
        task(tmp_path, lambda i: {"text": f"p{i}"})


def test_conversations_with_system_texts_of_their_own_keep_them(tmp_path):
    same = task(tmp_path, lambda i: {"messages": openai(*two(i, "Add."))})
    assert same.system == "Add." and same.train[0].system is None
    mixed = task(tmp_path, lambda i: {"messages": openai(*two(0, f"Be {i}." if i else None))})
    assert mixed.system is None and len({example.system for example in mixed.train}) == len(mixed.train)
    assert mixed.notes["duplicates"] == 0  # the same turns under another system text are another question
    ids = {example.id for split in (mixed.train, mixed.test, mixed.validation) for example in split}
    assert len(ids) == 60 - len(mixed.heldout)


def test_a_conversation_that_answers_a_test_question_on_its_way_is_left_out_of_train(tmp_path):
    test = [{"messages": openai(("user", f"q{i}"), ("assistant", "x"))} for i in range(10)]
    chats = task(tmp_path, lambda i: {"messages": openai(*two(i))}, test=test)
    questions = {example.history[0][0] for example in (*chats.train, *chats.heldout)}
    assert not questions & {f"q{i}" for i in range(10)}
    known = sum(int(example.prompt[1:]) < 10 for example in chats.validation if example.history)
    said = f"{10 - known} left out of train: an earlier turn is a question of validation or test"
    assert said in chats.notes["data"]
    last = task(tmp_path, lambda i: {"messages": openai(*two(i))}, test=test, turns="last", n_validation=5)
    assert len(last.train) + len(last.heldout) == 55


def test_history_system_and_longest_row_are_part_of_what_a_task_is(tmp_path):
    def digest(make, **spec):
        return task(tmp_path, make, **spec).digest

    chats = {
        digest(lambda i: {"messages": openai(*two(i))}),
        digest(lambda i: {"messages": openai(*two(i))}, max_length=64),
        digest(lambda i: {"messages": openai(*two(i)[2:])}),
        digest(lambda i: {"messages": openai(*two(i, f"{i % 2}"))}),
        digest(lambda i: {"messages": openai(*two(i, f"{i % 3}"))}),
    }
    assert len(chats) == 5
