"""Figures of a whole split: span F1 is seqeval's, Matthews and F1 their closed forms, two correlations."""

import math
import random

import pytest

from lorax.errors import UserError
from lorax.stats.measures.corpus import of_corpus, read_spans, written_spans
from lorax.tasks.labelled.tagged import written_tags

TAGS = ["O", "O", "B-a", "I-a", "B-b", "I-b"]


def test_span_f1_is_that_of_seqeval():
    """On random tags, stray I- and all: seqeval counts them as conlleval does."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    draw = random.Random(0)
    truth = [[draw.choice(TAGS) for _ in range(draw.randint(1, 9))] for _ in range(60)]
    given = [[tag if draw.random() < 0.7 else draw.choice(TAGS) for tag in tags] for tags in truth]
    items = [{"answer": written_tags(a, True), "completion": written_tags(b, True)}
             for a, b in zip(truth, given, strict=True)]  # fmt: skip
    figures = of_corpus("spans", items)
    assert list(figures) == ["span_f1", "precision", "recall"]
    theirs = [measure(truth, given) for measure in (f1_score, precision_score, recall_score)]
    assert list(figures.values()) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("tags, spans", [
    (["I-a", "I-a", "I-b"], "a[0:2] b[2:3]"),  # an I- that continues nothing begins a span
    (["B-a", "B-a", "I-a", "O"], "a[0:1] a[1:3]"),
    (["B-a", "I-b"], "a[0:1] b[1:2]"),
    (["S-a", "B-a", "E-a", "O"], "a[0:1] a[1:3]"),
    (["U-a", "B-a", "L-a", "O"], "a[0:1] a[1:3]"),
    (["O", "O"], "none"),
])  # fmt: skip
def test_spans_are_read_as_conlleval_does(tags, spans):
    assert written_tags(tags, True) == spans
    assert written_spans(read_spans(spans)) == spans


def test_a_span_is_right_whole_or_not_at_all():
    items = [
        {"answer": "a[0:2] b[3:4]", "completion": "a[0:1] b[3:4] b[5:6]"},
        {"answer": "none", "completion": "none"},
    ]
    assert of_corpus("spans", items) == {"span_f1": pytest.approx(2 / 5), "precision": 1 / 3, "recall": 1 / 2}
    assert of_corpus("spans", items[1:]) == {"span_f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_matthews_and_f1_in_closed_form():
    tp, fp, fn, tn = 6, 2, 3, 4
    cells = [("y", "y")] * tp + [("n", "y")] * fp + [("y", "n")] * fn + [("n", "n")] * tn
    items = [{"answer": a, "completion": b} for a, b in cells]
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert of_corpus("matthews", items)["matthews"] == pytest.approx((tp * tn - fp * fn) / root)
    assert of_corpus("f1 y", items)["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert of_corpus("f1 n", items)["f1"] == pytest.approx(2 * tn / (2 * tn + fp + fn))
    always = [{"answer": a, "completion": "y"} for a, _ in cells]
    assert of_corpus("matthews", always)["matthews"] == 0.0


def test_correlations_are_of_values_and_of_ranks():
    items = [{"answer": str(x), "completion": math.exp(x)} for x in (0.0, 1.0, 2.0, 5.0)]
    figures = of_corpus("correlation", items)
    assert figures["spearman"] == pytest.approx(1.0) and 0.5 < figures["pearson"] < 0.99
    constant = [item | {"completion": 2.0} for item in items]
    assert of_corpus("correlation", constant) == {"pearson": None, "spearman": None}


def test_parts_answers_and_unknown_measures():
    items = [{"score": 1, "part": "matched"}, {"score": 0, "part": "matched"}, {"score": 1, "part": "mismatched"}]
    assert of_corpus("parts matched", items) == {"accuracy_matched": 0.5, "accuracy_mismatched": 1.0}
    assert of_corpus("answers", [{"score": 0, "tolerant": 0.5}]) == {"token_f1": 0.5, "exact_match": 0.0}
    assert of_corpus("tags", [{"answer": "N V", "completion": "N N"}]) == {"token_accuracy": 0.5}
    assert of_corpus("spans", []) == {}
    with pytest.raises(UserError, match="measure 'span': did you mean 'spans'"):
        of_corpus("span", items)
