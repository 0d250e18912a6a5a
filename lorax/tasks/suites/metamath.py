"""MetaMathQA (arXiv:2309.12284; MIT) to train on, GSM8K or MATH to be tested on: the recipe of most LoRA papers."""

from __future__ import annotations

from dataclasses import dataclass

from lorax.errors import UserError, near
from lorax.tasks.base import Example, prompt_id
from lorax.tasks.latex import last_boxed
from lorax.tasks.own_data import TextToText
from lorax.tasks.readers import Row, Rows, text
from lorax.tasks.registry import register
from lorax.tasks.suites.sources import first_rows, test_rows

BENCHMARKS = ("gsm8k", "math")
_MARK = "The answer is: "


@register("metamath")
@dataclass(frozen=True, kw_only=True)
class MetaMath(TextToText):
    """Trained on rewritten problems, tested on the originals' test set."""

    name: str = "metamath"
    path: str | None = "meta-math/MetaMathQA"
    benchmark: str = "gsm8k"
    """What is tested on: gsm8k | math."""
    problems: str = "openai/gsm8k"
    """A file or hub id of that: `question` and `answer` of GSM8K, `problem` and `solution` of MATH."""
    problems_subset: str | None = None
    """Configuration name of that hub dataset."""
    first: int | None = None
    """The first rows of the training file, in its order."""
    kinds: str | None = None
    """Only training rows whose `type` begins so: GSM | MATH."""
    cut: str | None = None
    """Text from which on an answer is left out; LoRA-GA's: a line break and "The answer is:"."""
    prompt: str = "query"
    answer: str = "response"
    extractor: str = "metamath"
    tolerant: str = "last_number"
    max_new_tokens: int = 512
    lr: float = 5e-4
    steps: int = 1000
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.benchmark not in BENCHMARKS:
            raise UserError(f"task.benchmark={self.benchmark}: {near(self.benchmark, BENCHMARKS)}")
        if self.kinds not in (None, "GSM", "MATH"):
            raise UserError(f"task.kinds={self.kinds}: {near(self.kinds, ('GSM', 'MATH'))}")
        if self.first is not None and self.first < 1:
            raise UserError(f"task.first={self.first}: at least 1")

    def rows(self, asked: str, answer: str, *others: str) -> dict[str, Rows]:
        """Return MetaMathQA's rows, and the benchmark's in the same words."""
        rows = self.all_rows()
        kept = rows["train"]
        if self.kinds is not None:
            kept = Rows([row for row in kept if text(row, "type").startswith(self.kinds)], kept.remarks)
        rows["train"] = first_rows(kept, self.first)
        if self.test is None:
            rows["test"] = test_rows(self.problems, "task.problems", self.problems_subset)
        rows["test"] = Rows([self._problem(row) for row in rows["test"]], rows["test"].remarks)
        return rows

    def _problem(self, row: Row) -> Row:
        """Return a row of the benchmark in the fields of MetaMathQA, with the final answer as `gold`."""
        if self.benchmark == "gsm8k":
            question, solution = text(row, "question"), text(row, "answer")
            _, mark, gold = solution.rpartition("####")
            gold = gold.strip().replace(",", "")
            if not mark or not gold:
                raise UserError(f"{row[0]}: the answer holds no '####' before its final number")
        else:
            question, solution = text(row, "problem"), text(row, "solution")
            gold = text(row, "answer") if "answer" in row[1] else last_boxed(solution) or ""
            if not gold:
                raise UserError(f"{row[0]}: the solution holds no \\boxed answer")
        response = f"{solution}\n{_MARK}{gold}"
        return row[0], {**row[1], self.prompt: question, self.answer: response, "gold": gold}

    def example(self, row: Row) -> Example:
        """Return a problem with its solution, scored by the final answer alone."""
        prompt = text(row, self.prompt) if self.template is None else self.joined.fill(row)
        answer = text(row, self.answer)
        if self.cut is not None:
            answer = answer.partition(self.cut)[0].rstrip()
        gold = row[1].get("gold") or text(row, self.answer).rpartition(_MARK)[2]
        return Example(prompt_id(prompt), prompt, answer, meta={"gold": str(gold)})
