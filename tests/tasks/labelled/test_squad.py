"""SQuAD's format and its two scores; what does not fit is one line with the question's place."""

import copy
import json

import datasets
import pytest

from lorax.errors import UserError
from lorax.tasks.base import Example
from lorax.tasks.labelled.squad import QuestionTask, token_f1
from lorax.tasks.registry import load

TOWER = "The Eiffel Tower stands in Paris. It was built in 1889 by the firm of Gustave Eiffel."


def squad(n=12, **change):
    asked = [
        {"id": f"a{at}", "question": f"Where, {at}?", "answers": [{"text": "Paris", "answer_start": 27}]}
        for at in range(n - 2)
    ]  # fmt: skip
    asked.append(
        {
            "id": "when",
            "question": "When?",
            "answers": [{"text": "1889", "answer_start": 50}, {"text": "in 1889", "answer_start": 47}],
        }
    )
    asked.append(
        {"id": "who", "question": "Who painted it?", "is_impossible": True, "answers": [], "plausible_answers": []}
    )
    asked[0] |= change
    return {"version": "v2.0", "data": [{"title": "Tower", "paragraphs": [{"context": TOWER, "qas": asked}]}]}


def written(folder, **parts):
    for name, content in parts.items():
        (folder / f"{name}-v2.0.json").write_text(json.dumps(content))
    return {"name": "squad", "path": str(folder), "n_validation": 2, "n_heldout": 0}


def test_a_question_has_its_text_its_answers_and_their_place(tmp_path):
    dev = squad(4)
    dev["data"][0]["paragraphs"][0]["context"] = "\n" + TOWER  # white space counts: starts are characters' numbers
    for asked in dev["data"][0]["paragraphs"][0]["qas"]:
        for answer in asked["answers"]:
            answer["answer_start"] += 1
    task = load(written(tmp_path, train=squad(), dev=dev), 0)
    assert [len(task.train), len(task.validation), len(task.test)] == [7, 1, 4]  # four of the twelve are in test
    assert "the dev set is the test set, validation is cut off train" in task.notes["data"]
    assert task.null and task.kind == "question_answering" and task.corpus == "answers"
    by_question = {example.meta["question"]: example for example in task.test}
    when = by_question["When?"]
    assert when.meta["answers"] == ["1889", "in 1889"] and when.meta["context"][when.meta["start"] :].startswith("1889")
    assert by_question["Who painted it?"].answer == "" and by_question["Who painted it?"].meta["answers"] == []
    assert task.digest != load({**written(tmp_path), "stride": 64}, 0).digest


def test_the_scores_are_those_of_the_official_script():
    task = QuestionTask(name="q", kind="question_answering", train=(), validation=(), test=())

    def scores(completion, *references):
        answer = references[0] if references else ""
        return task.score(Example("i", "p", answer, meta={"answers": list(references), "start": 0}), completion)

    assert scores("the  PARIS.", "Paris") == {"score": 1, "tolerant": 1.0}
    assert scores("in 1889", "1889", "In 1889!") == {"score": 1, "tolerant": 1.0}
    assert scores("city of Paris", "Paris") == {"score": 0, "tolerant": pytest.approx(0.5)}
    assert scores("Paris, France", "Paris", "France Paris") == {"score": 0, "tolerant": 1.0}
    assert scores("") == {"score": 1, "tolerant": 1.0} and scores("Paris") == {"score": 0, "tolerant": 0.0}
    assert scores("", "Paris") == {"score": 0, "tolerant": 0.0}
    assert token_f1("a b b", "b b b") == pytest.approx(2 * 2 / (2 + 3))  # `a` is an article
    assert token_f1("the", "a") == 1.0  # nothing is left of either


@pytest.mark.parametrize("change, message", [
    ({"answers": [{"text": "Paris", "answer_start": 26}]},
     r"train-v2.0.json, article 1, paragraph 1, question 1, answer 1: 'Paris' does not stand at character 26"),
    ({"answers": [{"text": "Paris", "answer_start": -58}]}, "does not stand at character -58"),
    ({"answers": [{"text": "", "answer_start": 1}]}, "question 1, answer 1: needs a text, and answer_start"),
    ({"answers": [{"text": "Paris"}]}, "question 1, answer 1: no field 'answer_start'"),
    ({"answers": "Paris"}, "question 1: field 'answers' is no list of objects"),
    ({"question": " "}, "question 1: field 'question' is empty"),
])  # fmt: skip
def test_a_wrong_question_is_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        load(written(tmp_path, train=squad(**change), dev=squad()), 0)
    assert "\n" not in str(caught.value)


def test_wrong_files_are_one_line(tmp_path):
    spec = written(tmp_path, train=squad())
    broken = copy.deepcopy(squad())
    del broken["data"][0]["paragraphs"][0]["qas"]
    (tmp_path / "dev.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match="dev.json, article 1, paragraph 1: no field 'qas'"):
        load(spec, 0)
    (tmp_path / "dev.json").write_text('{"data": [\n{"title": 1,}]}')
    with pytest.raises(UserError, match="dev.json, line 2: not JSON"):
        load(spec, 0)
    (tmp_path / "dev-v1.1.json").write_text("[]")
    with pytest.raises(UserError, match="holds dev-v1.1.json and dev.json; say which with task.validation=<file>"):
        load(spec, 0)
    with pytest.raises(UserError, match="task.stride=300: must be between 0 and 192"):
        load({"name": "squad", "stride": 300}, 0)
    with pytest.raises(UserError, match="task.path=./nothing: no such file or folder"):
        load({"name": "squad", "path": "./nothing"}, 0)


def test_the_hub_and_rows_have_answers_as_lists_of_texts_and_starts(tmp_path, monkeypatch):
    answers = [{"text": ["Paris"], "answer_start": [27]}] * 11 + [{"text": [], "answer_start": []}]
    rows = {"question": [f"Where, {at}?" for at in range(12)], "context": [TOWER] * 12, "answers": answers}
    made = datasets.Dataset.from_dict(rows)
    found = datasets.DatasetDict({"train": made.select(range(8)), "validation": made.select(range(8, 12))})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset, revision=None: found)
    task = load({"name": "squad", "n_validation": 2, "n_heldout": 0}, 0)
    assert len(task.test) == 4 and task.null and task.train[0].answer == "Paris"
    lines = [
        {"question": f"Where, {at}?", "context": TOWER, "answers": [{"text": "Paris", "answer_start": 27}]}
        for at in range(9)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = load({"name": "squad", "path": str(tmp_path / "mine.jsonl"), "n_validation": 2, "n_heldout": 0}, 0)
    assert not own.null and len(own.test) == 1 and own.majority == 1.0
    (tmp_path / "mine.jsonl").write_text(
        json.dumps({**lines[0], "answers": {"text": ["Paris"], "answer_start": []}}) + "\n"
    )
    with pytest.raises(UserError, match="mine.jsonl, line 1: 1 answers, 0 starts"):
        load({"name": "squad", "path": str(tmp_path / "mine.jsonl")}, 0)
