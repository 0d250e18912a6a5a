"""GSM8K, grade-school mathematics in words (Cobbe et al., arXiv:2110.14168; MIT)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorax.errors import UserError
from lorax.tasks.base import Example, prompt_id
from lorax.tasks.own_data import TextToText
from lorax.tasks.readers import Row, text
from lorax.tasks.registry import register


@register("gsm8k")
@dataclass(frozen=True, kw_only=True)
class GSM8K(TextToText):
    """The official 7,473 / 1,319 problems; validation and heldout are cut from train."""

    name: str = "gsm8k"
    path: str | None = "openai/gsm8k"
    """The hub id, or a folder with train.jsonl and test.jsonl."""
    subset: str | None = "main"
    annotations: bool = False
    """Keep the calculator notes `<<48/2=24>>` in the solutions that are trained on."""
    prompt: str = "question"
    system: str | None = "Solve the problem step by step. End with #### and the final number."
    extractor: str = "lm_eval_strict"
    tolerant: str = "lm_eval_flexible"
    max_new_tokens: int = 256
    lr: float = 5e-4
    steps: int = 300
    batch_size: int = 16

    def example(self, row: Row) -> Example:
        """Return a problem with its solution, scored by the final number alone."""
        question = text(row, self.prompt) if self.template is None else self.joined.fill(row)
        answer = text(row, self.answer)
        if "####" not in answer:
            raise UserError(f"{row[0]}: the answer holds no '####' before its final number")
        final = answer.rpartition("####")[2].strip().replace(",", "")
        if not self.annotations:
            answer = re.sub(r"<<[^>]*>>", "", answer)
        return Example(prompt_id(question), question, answer, meta={"gold": final})
