"""Published answer rules, on the texts that tell them apart."""

import json
from pathlib import Path

import pytest

from lorax.errors import UserError
from lorax.tasks import extractors

# GSM8K's test set has 1,319 golds: these, as they are written there, and 1,303 plain integers.
WITH_COMMAS = [
    "2,125", "114,200", "276,000", "5,600", "1,600", "65,960", "1,450,000", "43,500", "10,800", "6,250",
    "14,000", "6,600", "1,875", "40,000",
]  # fmt: skip
NEGATIVE = ["-10", "-3"]
REAL = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"


def gold_lists():
    """The golds, and where the data set itself is at hand also as its file has them."""
    yield [*WITH_COMMAS, *NEGATIVE, *map(str, range(1303))]
    if REAL.is_file():
        yield [json.loads(line)["answer"].split("####")[1].strip() for line in REAL.read_text().splitlines()]


@pytest.mark.parametrize("name, template, misread", [
    ("hash_int", "Some steps.\n#### {}", 16),
    ("metamath", "Some steps.\nThe answer is: {}", 1),
    ("last_number", "The answer is {}.", 0),
    ("lm_eval_strict", "Some steps.\n#### {}", 0),
    ("lm_eval_flexible", "So it is {}", 0),
])  # fmt: skip
def test_real_golds_are_misread_as_often_as_stated(name, template, misread):
    rule = extractors.get(name)
    for golds in gold_lists():
        misread_golds = [gold for gold in golds if not rule.correct(template.format(gold), gold.replace(",", ""))]
        assert len(golds) == 1319
        assert len(misread_golds) == misread, misread_golds


@pytest.mark.parametrize("name, text, gold, correct", [
    ("hash_int", "no marker", "0", 1),  # nothing found is read as 0
    ("hash_int", "#### 3 then #### 4", "3", 1),  # the first wins
    ("metamath", "The answer is: 3/4", "1", 1),  # 0.75, rounded
    ("metamath", "The answer is: 1,234", "1234", 1),
    ("metamath", "it is 5", "5", 0),  # never says the sentence
    ("metamath", "The answer is: 2. The answer is: 7", "7", 1),
    ("peft_suite", "The final answer is: $7.0 %\nand 8 more", "7", 1),
    ("peft_suite", "The answer is 7.0!", "7", 1),
    ("peft_suite", "The answer is 1/2", "0.5", 1),
    ("peft_suite", "#### 1,000", "1000", 0),  # commas are not removed
    ("last_number", "12 apples and 3,000 pears", "3000", 1),
    ("last_number", "none", "3", 0),
    ("keyword_first", "the correct answer is answer2, not answer1", "answer2", 1),
    ("keyword_first", "true, or rather false", "false", 0),  # first mention wins
    ("lm_eval_strict", "the answer is 63", "63", 0),  # the same text ...
    ("lm_eval_flexible", "the answer is 63", "63", 1),  # ... read the other way
    ("lm_eval_flexible", "it costs $1,200.", "1200", 1),
    ("exact", " 12\n", "12", 1),
    ("exact", "12.", "12", 0),
    ("number", "80 - 70 = 10.", "10", 1),
    ("number", "The result is -3.50", "-3.5", 1),
    ("text", "The answer is **Mother-in-law**.", "mother-in-law", 1),
    ("text", "Sure!\nFoundation, acute, go", "Foundation, acute, go", 1),
    ("text", "not Luk but Amy", "Luk", 0),
])  # fmt: skip
def test_rules_on_texts(name, text, gold, correct):
    assert extractors.get(name).correct(text, gold) == correct


@pytest.mark.parametrize("name", extractors.names())
@pytest.mark.parametrize(
    "text", ["", " ", "####", "The answer is: ", "The answer is: /", "The answer is: 3/0", "$,.", "١٢"]
)
def test_no_text_is_an_error(name, text):
    assert extractors.get(name).correct(text, "3") in (0, 1)


def test_unknown_extractor_names_the_near_one():
    with pytest.raises(UserError, match="did you mean 'lm_eval_strict'"):
        extractors.get("lm_eval_strct")
