"""What a whole split scores, where that is no mean over its items: span F1, Matthews, F1, correlations. Torch-free.

A run's `score` stays the mean over items, which intervals and tests need; these figures stand beside it, under names
of their own, as the literature reports them. All are computed from the items alone, so a record can be checked.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorax.errors import UserError, near

Items = Sequence[Mapping[str, Any]]
Span = tuple[str, int, int]
"""Type, first word, word after the last."""
_SPAN = re.compile(r"(\S+)\[(\d+):(\d+)\]")


def of_corpus(name: str, items: Items) -> dict[str, float | None]:
    """Return the figures of a split, the one that the literature reports first; None where one is not defined.

    Args:
        name: `Task.corpus`: a measure's name, and after a space what it needs to know (`f1 equivalent`).
        items: of one split, with answer and completion.

    Raises:
        UserError: no such measure; names near misses.
    """
    measure, _, about = name.partition(" ")
    if measure not in _MEASURES:
        raise UserError(f"measure {measure!r}: {near(measure, _MEASURES)}")
    figures = _MEASURES[measure](items, about) if items else {}
    return {key: value if math.isfinite(value) else None for key, value in figures.items()}


def written_spans(spans: Sequence[Span]) -> str:
    """Return spans as the text that items hold.

    Examples:
        >>> written_spans([("artist", 1, 3)]), written_spans([])
        ('artist[1:3]', 'none')
    """
    return " ".join(f"{kind}[{start}:{end}]" for kind, start, end in spans) or "none"


def read_spans(text: str) -> list[Span]:
    """Return the spans of such a text.

    Examples:
        >>> read_spans("artist[1:3] date[4:5]")
        [('artist', 1, 3), ('date', 4, 5)]
    """
    return [(kind, int(start), int(end)) for kind, start, end in _SPAN.findall(text)]


def _spans(items: Items, about: str) -> dict[str, float]:
    """Micro-averaged over spans: one is right if type, beginning and end are."""
    right = given = wanted = 0
    for item in items:
        ours, theirs = Counter(read_spans(item["completion"])), Counter(read_spans(item["answer"]))
        right, given, wanted = right + (ours & theirs).total(), given + ours.total(), wanted + theirs.total()
    precision, recall = right / given if given else 0.0, right / wanted if wanted else 0.0
    return {"span_f1": 2 * right / (given + wanted) if given + wanted else 0.0, "precision": precision,
            "recall": recall}  # fmt: skip


def _tags(items: Items, about: str) -> dict[str, float]:
    pairs = [pair for item in items for pair in zip(item["answer"].split(), item["completion"].split(), strict=True)]
    return {"token_accuracy": sum(a == b for a, b in pairs) / len(pairs)}


def _columns(items: Items) -> tuple[list[Any], list[Any]]:
    return [item["answer"] for item in items], [item["completion"] for item in items]


def _matthews(items: Items, about: str) -> dict[str, float]:
    from sklearn.metrics import matthews_corrcoef

    return {"matthews": float(matthews_corrcoef(*_columns(items)))}


def _f1(items: Items, about: str) -> dict[str, float]:
    from sklearn.metrics import f1_score

    answers, given = _columns(items)
    return {"f1": float(f1_score(answers, given, pos_label=about, zero_division=0.0))}


def _correlation(items: Items, about: str) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    answers, given = ([float(value) for value in column] for column in _columns(items))
    if len(items) < 2 or len(set(answers)) < 2 or len(set(given)) < 2:
        return {"pearson": math.nan, "spearman": math.nan}
    return {
        "pearson": float(pearsonr(answers, given).statistic),
        "spearman": float(spearmanr(answers, given).statistic),
    }


def _parts(items: Items, about: str) -> dict[str, float]:
    """The mean score of each part of a split; parts by name, that of `about` first."""
    scores: dict[str, list[float]] = defaultdict(list)
    for item in items:
        scores[item.get("part", about)].append(item["score"])
    names = sorted(scores, key=lambda name: (name != about, name))
    return {f"accuracy_{name}": sum(scores[name]) / len(scores[name]) for name in names}


def _answers(items: Items, about: str) -> dict[str, float]:
    return {
        "token_f1": sum(item["tolerant"] for item in items) / len(items),
        "exact_match": sum(item["score"] for item in items) / len(items),
    }


_MEASURES: Mapping[str, Callable[[Items, str], dict[str, float]]] = {
    "spans": _spans, "tags": _tags, "matthews": _matthews, "f1": _f1, "correlation": _correlation, "parts": _parts,
    "answers": _answers,
}  # fmt: skip
