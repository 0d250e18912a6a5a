"""MetaMathQA with GSM8K and MATH: rows, final answers, and the equality of LaTeX."""

import json

import pytest

from lorax.errors import UserError
from lorax.tasks import extractors, load
from lorax.tasks.latex import last_boxed, same_latex

KINDS = ("GSM_AnsAug", "GSM_SV", "MATH_FOBAR", "MATH_Rephrased")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task(folder, problems, **spec):
    rows = [{"query": f"What is {i} + 1?", "response": f"{i} + 1 = {i + 1}\n#### {i + 1}\nThe answer is: {i + 1}",
             "type": KINDS[i % 4]} for i in range(120)]  # fmt: skip
    path, tests = written(folder / "MetaMathQA.jsonl", rows), written(folder / "problems.jsonl", problems)
    return load({"name": "metamath", "path": path, "problems": tests, "n_validation": 10} | spec)


GSM = [
    {"question": f"Tom has {i} + 1,000 apples?", "answer": f"He has {i + 1000:,}\n#### {i + 1000:,}"} for i in range(9)
]
MATH = [{"problem": f"Half of {i}?", "solution": rf"It is $\boxed{{\frac{{{i}}}{{2}}}}$."} for i in range(1, 9)]


def test_the_first_rows_of_one_kind_in_the_order_of_the_file(tmp_path):
    made = task(tmp_path, GSM, kinds="GSM", first=40, cut="\nThe answer is:", extractor="hash_int")
    known = {int(one.prompt.split()[2]) for one in (*made.train, *made.validation, *made.heldout)}
    assert known == {i for i in range(80) if i % 4 < 2}
    example = made.train[0]
    assert example.answer.endswith(f"#### {example.gold}") and "The answer" not in example.answer
    assert made.score(example, f"so #### {example.gold}")["score"] == 1
    assert "the first 40 rows" in made.notes["data"]


def test_problems_are_scored_by_the_published_rule(tmp_path):
    made = task(tmp_path, GSM)
    example = next(one for one in made.test if "Tom has 5 " in one.prompt)
    assert example.gold == "1005" and example.answer.endswith("The answer is: 1005")
    assert [made.score(example, words)["score"] for words in
            ("The answer is: 1,005", "1005", "The answer is: 6")] == [1, 0, 0]  # fmt: skip
    math = task(tmp_path, MATH, benchmark="math", extractor="metamath_latex")
    half = next(one for one in math.test if one.prompt == "Half of 1?")
    said = [r"The answer is: \dfrac12.", "The answer is: 0.5", r"\frac{1}{2}", "The answer is: 1"]
    assert [math.score(half, words)["score"] for words in said] == [1, 1, 0, 0]


@pytest.mark.parametrize("left, right, same", [
    (r"\tfrac{1}{2}", r"\frac12", True), (r"10\%", "10", True), (r"5\text{ cm}", "5", True), (r"90^\circ", "90", True),
    ("x=3", "3", True), (r"\left( 1, 2 \right)", "(1,2)", True), (r"\sqrt3", r"\sqrt{3}", True), (".5", "0.5", True),
    ("3/4", r"\frac{3}{4}", True), ("x+1=2", "2", False), ("1,000", "1000", False), ("-1", "1", False),
])  # fmt: skip
def test_latex_is_the_same_by_how_it_may_be_written(left, right, same):
    assert same_latex(left, right) is same_latex(right, left) is same


def test_the_last_box_counts_with_the_braces_in_it():
    assert last_boxed(r"\boxed{1} then $\boxed{\sqrt{\frac{1}{2}}}$.") == r"\sqrt{\frac{1}{2}}"
    assert last_boxed(r"\boxed 7$") == "7" and last_boxed("none") is None and last_boxed(r"\boxed{1") is None
    assert extractors.get("metamath_latex").correct("The answer is: 1. The answer is: 2.", "2") == 1


@pytest.mark.parametrize("problems, spec, words", [
    ([{"question": "a", "answer": "5"}], {}, "problems.jsonl, line 1: the answer holds no '####'"),
    ([{"problem": "a", "solution": "5"}], {"benchmark": "math"}, r"line 1: the solution holds no \\boxed answer"),
    (GSM, {"benchmark": "aime"}, "task.benchmark=aime: "), (GSM, {"kinds": "gsm"}, "task.kinds=gsm: "),
    (GSM, {"first": 0}, "task.first=0: at least 1"),
])  # fmt: skip
def test_wrong_rows_and_options_are_one_line(tmp_path, problems, spec, words):
    with pytest.raises(UserError, match=words):
        task(tmp_path, problems, **spec)


def test_a_problem_that_is_trained_on_is_dropped_from_train_and_said(tmp_path):
    made = task(tmp_path, [{"question": "What is 7 + 1?", "answer": "#### 8"}])
    assert all(one.prompt != "What is 7 + 1?" for one in (*made.train, *made.validation, *made.heldout))
    assert "dropped 1 (same prompt, another answer: 1)" in made.notes["data"]
