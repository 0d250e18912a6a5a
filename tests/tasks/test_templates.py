"""Prompts out of several fields, and what counts as a duplicate then."""

import json

import pytest

from lorax.errors import UserError
from lorax.tasks import load
from lorax.tasks.templates import Template

ALPACA = [{"instruction": f"Do thing {i % 20}.", "input": f"context {i}", "output": f"result {i}"} for i in range(60)]


def alpaca(folder, rows, **spec):
    (folder / "alpaca.json").write_text(json.dumps(rows))
    return load({"name": "jsonl", "path": str(folder / "alpaca.json"), "answer": "output"} | spec, 0)


def prompts(task):
    return {e.prompt for split in (task.train, task.validation, task.test, task.heldout) for e in split}


def test_fields_are_joined_and_rows_that_differ_in_one_of_them_are_no_duplicates(tmp_path):
    task = alpaca(tmp_path, ALPACA, template="{instruction}\\n{input}")
    assert prompts(task) == {f"Do thing {i % 20}.\ncontext {i}" for i in range(60)}
    assert task.notes["data"] == "read 60 rows, kept 60, dropped 0"
    assert task.digest == alpaca(tmp_path, ALPACA, template="{instruction}\n{input}").digest
    joined = [{"prompt": f"{row['instruction']}\n{row['input']}", "output": row["output"]} for row in ALPACA]
    assert alpaca(tmp_path, joined).digest == task.digest  # the data count, not where they come from


def test_what_is_dropped_is_counted_by_its_reason(tmp_path):
    task = alpaca(tmp_path, ALPACA, prompt="instruction")
    assert task.notes["data"] == "read 60 rows, kept 20, dropped 40 (same prompt, another answer: 40)"
    rows = [*ALPACA, *ALPACA[:7], ALPACA[0] | {"output": "else"}]
    task = alpaca(tmp_path, rows, template="{instruction}\n{input}")
    reasons = "(same prompt and answer: 7, same prompt, another answer: 1)"
    assert task.notes["data"] == f"read 68 rows, kept 60, dropped 8 {reasons}"
    assert task.notes["duplicates"] == 8


@pytest.mark.parametrize("template, empty, expected", [
    ("{a}\n{b}", "b", "A"),
    ("{a}\n\n{b}", "b", "A"),
    ("{a}\n\n{b}\n\nAnswer:", "b", "A\n\nAnswer:"),
    ("{a}\n{b}\n{c}", "b", "A\nC"),
    ("{a} {b}\n{c}", "b", "A \nC"),
    ("Q: {a}\nC: {b}\nA:", "b", "Q: A\nA:"),
    ("{b}\n\n{a}", "b", "A"),
    ("{a}\n{b}", "", "A\nB"),
    ('{{"q": "{a}"}}', "", '{"q": "A"}'),
    ("{a}\\n{b}", "", "A\nB"),
    ("{a}\\\\n{b}", "", "A\\nB"),
    ("{a}\n\\n{b}", "", "A\n\\nB"),
    ("{#1 String} {d.e}", "", "one D"),
])  # fmt: skip
def test_a_line_whose_fields_are_all_empty_is_left_out(template, empty, expected):
    fields = {"a": " A ", "b": "B", "c": "C", "#1 String": "one", "d.e": "D"} | ({empty: None} if empty else {})
    assert Template(template).fill(("", fields)) == expected


@pytest.mark.parametrize("spec, words", [
    ({"template": "{instruction}\n{inptu}"}, "item 1: no field 'inptu'; did you mean 'input'"),
    ({"template": "{instruction"}, "expected '}' before end of string; a brace itself is {{ or }}"),
    ({"template": "a } b {input}"}, "Single '}' encountered"),
    ({"template": "{}"}, "takes a field's name and nothing else"),
    ({"template": "{input!r}"}, "takes a field's name and nothing else"),
    ({"template": "{{input}}"}, "names no field"),
    ({"template": ""}, "names no field"),
    ({"template": {"input": ""}}, "one text; quote it twice"),
    ({"template": "{instruction} {output}"}, "{output} is the answer; a prompt must not hold it"),
    ({"prompt": ["instruction", "input"]}, "task.template joins several fields"),
])  # fmt: skip
def test_bad_templates_are_one_line(tmp_path, spec, words):
    with pytest.raises(UserError) as caught:
        alpaca(tmp_path, ALPACA, **spec)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_rows_whose_fields_are_all_empty_are_named(tmp_path):
    with pytest.raises(UserError, match="item 61: 'instruction' and 'input' are empty"):
        alpaca(tmp_path, [*ALPACA, {"instruction": "", "input": None, "output": "x"}], template="{instruction}{input}")


def test_pairs_of_texts_are_classified(tmp_path):
    lines = ["sentence1\tsentence2\tlabel", *(f'"{i} is\tsmall"\t{"yn"[i % 2]}' for i in range(60))]
    (tmp_path / "rte.tsv").write_text("\n".join(lines) + "\n")
    spec = {"name": "text_classification", "path": str(tmp_path / "rte.tsv"), "template": "{sentence1} => {sentence2}"}
    assert '"7 is => small"' in prompts(load(spec, 0))
    with pytest.raises(UserError, match="task.template: banking77 is read as its authors write it"):
        load({"name": "banking77", "path": str(tmp_path), "template": "{text}"}, 0)
    rows = [{"question": f"q{i}", "hint": f"h{i}", "answer": f"#### {i}"} for i in range(60)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load({"name": "gsm8k", "path": str(tmp_path / "train.jsonl"), "template": "{question} ({hint})"}, 0)
    assert "q7 (h7)" in prompts(task)
