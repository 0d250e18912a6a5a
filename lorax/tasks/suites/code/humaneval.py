"""HumanEval (Chen et al., arXiv:2107.03374; MIT): functions to complete, scored by their tests, pass@1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.own_data import TextToText
from lorax.tasks.readers import Row, Rows, text
from lorax.tasks.readers.rows import value
from lorax.tasks.registry import register
from lorax.tasks.suites.code import sandbox
from lorax.tasks.suites.sources import first_rows, test_rows

ASK = "Complete the Python function. Answer with the whole function in one block of code.\n\n```python\n{}\n```"
_FENCE = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_STOPS = re.compile(r"\n(?=class |def |#|if __name__|print\(|assert |@|```)")


def program(prompt: str, completion: str, entry: str) -> str:
    """Return the source text that a completion makes of a problem.

    A block of code is read, else the whole completion; one that holds the function takes the place of the problem's
    last function, after what stands before it; another one continues the problem, up to the next top-level line.

    Args:
        prompt: the problem: imports, helpers, and the function's head with its docstring.
        completion: the model's.
        entry: the function's name.
    """
    found = _FENCE.search(completion)
    code = found[1] if found else completion
    head = re.search(rf"^(?:async )?def {re.escape(entry)}\b", code, re.MULTILINE)
    if head is not None:
        before = re.split(rf"^def {re.escape(entry)}\b", prompt, maxsplit=1, flags=re.MULTILINE)[0]
        return f"{before}\n{code}" if found else f"{before}\n{code[: head.end()]}{_STOPS.split(code[head.end() :])[0]}"
    body = _STOPS.split("\n" + code.rstrip())[0].removeprefix("\n")
    if body and not body[0].isspace():
        body = f"    {body}"  # a completion is decoded without the white space around it
    return f"{prompt.rstrip()}\n{body}\n"


@dataclass(frozen=True, kw_only=True)
class Programs(Task):
    """A task whose answers are programs, scored by running them with their tests."""

    limits: sandbox.Limits = sandbox.Limits()

    def score(self, example: Example, completion: str) -> dict[str, int]:
        """Return 1 where the program that a completion makes passes the example's tests, in the sandbox."""
        prompt, entry, tests = example.meta["tests"]
        source = program(prompt, completion, entry)
        passed = sandbox.run(f"{source}\n\n{tests}\n\ncheck({entry})\n", self.limits).passed
        return {"score": int(passed), "tolerant": int(passed)}


@register("humaneval")
@dataclass(frozen=True, kw_only=True)
class HumanEval(TextToText):
    """Trained on instructions with code, tested on the 164 problems."""

    name: str = "humaneval"
    path: str | None = "m-a-p/CodeFeedback-Filtered-Instruction"
    problems: str = "openai/openai_humaneval"
    """The file HumanEval.jsonl.gz, or a hub id."""
    first: int | None = None
    """The first rows of the training file, in its order."""
    seconds: int = 10
    """Time for a program, on the clock."""
    megabytes: int = 1024
    """Memory for a program."""
    prompt: str = "query"
    max_new_tokens: int = 512
    lr: float = 5e-4
    steps: int = 1000
    batch_size: int = 32

    def load(self, data_seed: int) -> Task:
        """Read the rows; without a sandbox nothing is loaded."""
        sandbox.check()
        return super().load(data_seed)

    def rows(self, asked: str, answer: str, *others: str) -> dict[str, Rows]:
        """Return the training rows and the problems."""
        rows = self.all_rows()
        rows["train"] = first_rows(rows["train"], self.first)
        if self.test is None:
            rows["test"] = test_rows(self.problems, "task.problems")
        return rows

    def example(self, row: Row) -> Example:
        """Return a row of training data, or a problem with its tests."""
        if "entry_point" not in row[1]:
            return super().example(row)
        problem, solution = str(value(row, "prompt")), str(value(row, "canonical_solution"))
        for key in ("prompt", "canonical_solution", "test"):
            text(row, key)
        prompt, entry = ASK.format(problem.rstrip()), text(row, "entry_point")
        tests = [problem, entry, str(value(row, "test"))]
        answer = f"```python\n{problem.rstrip()}\n{solution.rstrip()}\n```"
        return Example(prompt_id(prompt), prompt, answer, meta={"tests": tests})

    def task(self, official: Mapping[str, Sequence[Example]], rows: Mapping[str, Rows], data_seed: int) -> Task:
        """Return the task, whose test is scored by running programs; validation, too, where it has tests."""
        made = super().task(official, rows, data_seed)
        given = {item.name: getattr(made, item.name) for item in fields(made)}
        limits = sandbox.Limits(self.seconds, self.megabytes)
        return Programs(**{**given, "metric": "pass@1"}, limits=limits)
