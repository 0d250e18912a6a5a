"""How translations are scored: chrF for each sentence, chrF, BLEU and exact matches of a whole split, by sacrebleu."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lorax.tasks.base import Example, Task


@dataclass(frozen=True, kw_only=True)
class Translations(Task):
    """Sentences and their translations. Scores are shares, 0 to 1.

    `score` is the sentence's chrF (characters, n 1 to 6, beta 2), so that its mean is one over items and statistics by
    item hold; the chrF of a corpus, which pools the n-grams of all sentences, stands beside it in a record.
    Source: Popović, chrF (W15-3049); Post, sacrebleu (arXiv:1804.08771).
    """

    metric: str = "chrf"
    floor_is: str = "copying the source"

    def score(self, example: Example, completion: str) -> dict[str, float]:
        """Return the sentence's chrF as `score`, and `exact`: 1 where the translation is the reference, else 0."""
        return {"score": sentence_chrf(completion, example.gold), "exact": int(completion.strip() == example.gold)}

    def overall(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return corpus chrF and BLEU, the share of exact matches, the sd of `score`, and sacrebleu's signatures."""
        from sacrebleu.metrics import BLEU, CHRF

        if not items:
            return {}
        said, references = [item["completion"] for item in items], [[item["answer"] for item in items]]
        chrf, bleu = CHRF(), BLEU()
        scores = {"chrf": chrf.corpus_score(said, references).score, "bleu": bleu.corpus_score(said, references).score}
        return {
            **{name: score / 100 for name, score in scores.items()},
            "exact": statistics.fmean(item["exact"] for item in items),
            "sd": statistics.stdev(item["score"] for item in items) if len(items) > 1 else None,
            "signatures": {"chrf": str(chrf.get_signature()), "bleu": str(bleu.get_signature())},
        }

    @property
    def majority(self) -> float | None:
        """The test score of giving back the source: what is scored without translating."""
        if not self.test:
            return None
        return statistics.fmean(sentence_chrf(example.meta["source"], example.gold) for example in self.test)


def sentence_chrf(said: str, reference: str) -> float:
    """Return the chrF of one sentence, 0 to 1.

    Examples:
        >>> sentence_chrf("the cat", "the cat"), sentence_chrf("", "the cat")
        (1.0, 0.0)
    """
    return _chrf().sentence_score(said, [reference]).score / 100


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()
