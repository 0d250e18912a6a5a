"""HumanEval: what a completion makes of a problem, and its score by running the tests."""

import gzip
import json

import pytest

from lorax.errors import UserError
from lorax.tasks import load
from lorax.tasks.suites.code.humaneval import program

PROBLEM = (
    'from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef double(x: int) -> int:\n    """ Twice x. """\n'
)
TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"
ROW = {"task_id": "HumanEval/0", "prompt": PROBLEM, "entry_point": "double", "test": TEST,
       "canonical_solution": "    return helper(x) * 2\n"}  # fmt: skip


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("humaneval")
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROW) + "\n")
    train = [{"query": f"Write {i}.", "answer": f"```python\nx = {i}\n```", "lang": "python"} for i in range(200)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    spec = {"path": str(folder / "train.jsonl"), "problems": str(folder / "HumanEval.jsonl.gz"), "n_validation": 8}
    return load({"name": "humaneval", **spec, "first": 100}, 0)


BODIES = [
    "    return helper(x) * 2",
    "return helper(x) * 2",  # as it is decoded, without the white space before it
    "return 2 * x\n\ndef other():\n    return 1 / 0\n\nprint(1 / 0)",
    "```python\ndef double(x: int) -> int:\n    return helper(x) * 2\n```\nThis doubles x.",
    "Here:\n```\nimport math\n\ndef double(x):\n    return math.prod([x, 2])\n```\n```\n1 / 0\n```",
    "def double(x):\n    return x + x\n\nprint(double(1 / 0))",
]


def test_the_reference_passes_and_wrong_programs_do_not(task):
    (example,) = task.test
    assert example.prompt.endswith('""" Twice x. """\n```') and task.metric == "pass@1"
    assert task.score(example, example.answer) == {"score": 1, "tolerant": 1}
    assert task.score(example, "return x * x")["score"] == 0
    assert len(task.train) + len(task.validation) + len(task.heldout) == 100
    assert "the first 100 rows" in task.notes["data"]


@pytest.mark.parametrize("completion", BODIES)
def test_a_completion_is_a_body_a_function_or_a_block_of_code(completion):
    scope = {}
    exec(program(PROBLEM, completion, "double") + "\n" + TEST + "check(double)", scope)
    assert scope["double"](3) == 6


def test_problems_that_cannot_be_read_are_one_line(tmp_path):
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"query": f"q{i}", "answer": "a"}) + "\n" for i in range(50)))
    spec = {"name": "humaneval", "path": str(train)}
    with pytest.raises(UserError, match="task.problems=.*gone.jsonl: no such file"):
        load({**spec, "problems": str(tmp_path / "gone.jsonl")})
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({key: value for key, value in ROW.items() if key != "test"}) + "\n")
    with pytest.raises(UserError, match="bad.jsonl, line 1: no field 'test'"):
        load({**spec, "problems": str(bad)})
