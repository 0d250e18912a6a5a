"""GSM8K, grade-school mathematics in words (Cobbe et al., arXiv:2110.14168; MIT)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorax.errors import UserError, near
from lorax.tasks import extractors
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.readers import Row, read_splits, text
from lorax.tasks.registry import register
from lorax.tasks.splitting import Sizes, split


@register("gsm8k")
@dataclass(frozen=True, kw_only=True)
class GSM8K:
    """The official 7,473 / 1,319 problems; validation and heldout are cut from train."""

    name: str = "gsm8k"
    path: str | None = "openai/gsm8k"
    """The hub id, or a folder with train.jsonl and test.jsonl."""
    subset: str | None = "main"
    annotations: bool = False
    """Keep the calculator notes `<<48/2=24>>` in the solutions that are trained on."""
    system: str | None = "Solve the problem step by step. End with #### and the final number."
    extractor: str = "lm_eval_strict"
    tolerant: str = "lm_eval_flexible"
    max_new_tokens: int = 256
    n_train: int | None = None
    n_validation: int | None = 500
    n_test: int | None = None
    n_heldout: int | None = 64
    shots: int = 0
    lr: float = 5e-4
    steps: int = 300
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in (self.extractor, self.tolerant):
            if name not in extractors.names():
                raise UserError(f"task.extractor={name}: {near(name, extractors.names())}")

    def load(self, data_seed: int) -> Task:
        """Read the problems; UserError names file and line of one without a final answer."""
        rows = read_splits(str(self.path or ""), self.subset)
        official = {part: [self._example(row) for row in found] for part, found in rows.items()}
        sizes = Sizes(self.n_train, self.n_validation, self.n_test, self.n_heldout, self.shots)
        splits, notes = split(official, sizes, data_seed, self.name)
        return Task(
            name=self.name,
            kind="generation",
            **splits,
            system=self.system,
            max_new_tokens=self.max_new_tokens,
            strict=self.extractor,
            tolerant=self.tolerant,
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            notes=notes,
        )

    def _example(self, row: Row) -> Example:
        question, answer = text(row, "question"), text(row, "answer")
        if "####" not in answer:
            raise UserError(f"{row[0]}: the answer holds no '####' before its final number")
        final = answer.rpartition("####")[2].strip().replace(",", "")
        if not self.annotations:
            answer = re.sub(r"<<[^>]*>>", "", answer)
        return Example(prompt_id(question), question, answer, meta={"gold": final})
