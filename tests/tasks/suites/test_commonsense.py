"""Commonsense sets: LLM-Adapters' rows and the authors' are the same questions; guessing is known."""

import json

import pytest

from lorax.errors import UserError
from lorax.tasks import load

ARC = {
    "question": "Which is a gas?", "choices": {"text": ["iron", "air", "ice"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}  # fmt: skip
CASES = {
    "boolq": ({"question": "is ice cold", "answer": True, "passage": "Ice."},
              "Please answer the following question with true or false, question: is ice cold?\n\n"
              "Answer format: true/false", "true"),
    "piqa": ({"goal": "Cut wood.", "sol1": "Use a saw.", "sol2": "Use a spoon.", "label": 0},
             "Please choose the correct solution to the question: Cut wood.\n\nSolution1: Use a saw.\n\n"
             "Solution2: Use a spoon.\n\nAnswer format: solution1/solution2", "solution1"),
    "social_i_qa": ({"context": "Jo fell.", "question": "What next?", "answerA": "cry", "answerB": "fly",
                     "answerC": "eat", "label": "1"},
                    "Please choose the correct answer to the question: Jo fell. What next?\n\nAnswer1: cry "
                    "Answer2: fly Answer3: eat\n\nAnswer format: answer1/answer2/answer3", "answer1"),
    "winogrande": ({"sentence": "Jo was slower than Al, so _ lost.", "option1": "Jo", "option2": "Al", "answer": "1"},
                   "Please choose the correct answer to fill in the blank to complete the given sentence: Jo was "
                   "slower than Al, so _ lost.\n\nOption1: Jo Option2: Al Answer format: option1/option2", "option1"),
    "hellaswag": ({"activity_label": "Baking", "ctx": "She", "endings": ["a", "b", "c", "d"], "label": "3"},
                  "Please choose the correct ending to complete the given sentence: Baking: She\n\nEnding1: a "
                  "Ending2: b Ending3: c Ending4: d\n\nAnswer format: ending1/ending2/ending3/ending4", "ending4"),
    "arc_easy": (ARC, "Please choose the correct answer to the question: Which is a gas?\n\nAnswer1: iron Answer2: air "
                 "Answer3: ice\n\nAnswer format: answer1/answer2/answer3", "answer2"),
    "openbookqa": ({"question_stem": "Which is a gas?", **{key: ARC[key] for key in ("choices", "answerKey")}},
                   "Please choose the correct answer to the question: Which is a gas?\n\nAnswer1: iron Answer2: air "
                   "Answer3: ice\n\nAnswer format: answer1/answer2/answer3", "answer2"),
}  # fmt: skip


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task(folder, name, row, **spec):
    first = next(key for key in ("question", "goal", "context", "sentence", "ctx", "question_stem", "instruction")
                 if key in row)  # fmt: skip
    rows = [{**row, first: f"{number} {row[first]}" if number else row[first]} for number in range(40)]
    return load({"name": "commonsense", "set": name, "path": written(folder / "train.jsonl", rows[20:]),
                 "test": written(folder / "test.jsonl", rows[:20]), **spec})  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_authors_rows_are_put_into_the_words_of_llm_adapters(tmp_path, name):
    row, instruction, answer = CASES[name]
    made = task(tmp_path, name, row)
    own = {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}
    same = task(tmp_path, name, own)
    example = next(one for one in made.test if one.prompt == instruction)
    assert example in same.test and example.answer == own["output"]
    count = len(instruction.rpartition(": ")[2].split("/"))
    assert made.notes["chance"] == pytest.approx(1 / count) and f"guessing: {1 / count:.3f}" in made.notes["data"]
    assert made.score(example, f"I think the correct answer is {answer}.")["score"] == 1
    assert made.score(example, "none of them")["score"] == 0
    assert made.digest != task(tmp_path, name, row, scoring="likelihood").digest


def test_wrong_rows_and_options_are_one_line(tmp_path):
    row = CASES["arc_easy"][0]
    for changed, words in [
        ({"answerKey": "E"}, "answerKey 'E' is none of the labels A, B, C"),
        ({"choices": ["iron"]}, "field 'choices' is not an object with lists"),
        ({"instruction": "Choose. Answer format: a/b", "answer": "c"}, "the answer is 'c', none of a, b"),
        ({"instruction": "Choose.", "answer": "c"}, "ends in no 'Answer format: a/b'"),
    ]:
        with pytest.raises(UserError, match="line 1: ") as caught:
            task(tmp_path, "arc_easy", {**row, **changed})
        assert words in str(caught.value)
    with pytest.raises(UserError, match="line 1: field 'label' is '4', not a number from 1 to 3"):
        task(tmp_path, "social_i_qa", CASES["social_i_qa"][0] | {"label": "4"})
    with pytest.raises(UserError, match="task.set=arc: "):
        load({"name": "commonsense", "set": "arc", "path": "x"})
    with pytest.raises(UserError, match="task.scoring=choice: "):
        load({"name": "commonsense", "set": "piqa", "path": "x", "scoring": "choice"})


def test_a_test_without_answers_gives_way_to_validation(tmp_path):
    row = CASES["piqa"][0]
    rows = [{**row, "goal": f"Cut {number}."} for number in range(60)]
    for part, some in (
        ("train", rows[:40]),
        ("validation", rows[40:50]),
        ("test", [{**r, "label": -1} for r in rows[50:]]),
    ):
        written(tmp_path / f"{part}.jsonl", some)
    made = load({"name": "commonsense", "set": "piqa", "path": str(tmp_path)})
    assert len(made.test) == 10 and "tested on the validation split" in made.notes["data"]
