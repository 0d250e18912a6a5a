"""Tagged words: columns, tokens with tags, texts with spans, SNIPS and the hub; what does not fit is one line."""

import json

import datasets
import pytest

from lorax.errors import UserError
from lorax.tasks.registry import load

CONLL = """-DOCSTART- -X- O O

# a comment
EU NNP B-ORG
rejects VBZ O
German JJ B-MISC

Peter NNP B-PER
Blackburn NNP I-PER
"""


def task_of(**options):
    return load({"name": "token_classification", "n_validation": 2, "n_heldout": 0, **options}, 0)


def sentences(n=12):
    return "\n".join(f"Anna{at} N B-PER\nsees V O\nOslo N B-LOC\n" for at in range(n))


def everything(task):
    return {example.prompt: example for part in ("train", "validation", "test") for example in task.examples(part)}


def test_columns_are_sentences_between_empty_lines(tmp_path):
    (tmp_path / "train.txt").write_text(sentences())
    (tmp_path / "valid.txt").write_text(CONLL)
    (tmp_path / "test.conll").write_text("Bo\tN\tS-PER\r\nruns\tV\tO\r\n\r\n")
    task = task_of(path=str(tmp_path))
    assert [len(task.train), len(task.validation), len(task.test)] == [12, 2, 1]
    found = everything(task)
    assert found["EU rejects German"].gold == "ORG[0:1] MISC[2:3]"
    assert found["Peter Blackburn"].gold == "PER[0:2]" and found["Peter Blackburn"].answer == "B-PER I-PER"
    assert found["Bo runs"].gold == "PER[0:1]"
    assert "I-LOC" in task.labels and task.corpus == "spans" and task.metric == "sentences_right"
    by_name = task_of(path=str(tmp_path), columns=["tokens", "tags", "entity"])
    assert by_name.corpus == "tags" and everything(by_name)["EU rejects German"].gold == "NNP VBZ JJ"


@pytest.mark.parametrize("text, message", [
    ("Anna B-PER\nsees\n", r"train.txt, line 2: 1 columns; 2 are needed, a word and its tag"),
    ("Anna\n", r"train.txt, line 1: 1 columns; 2 are needed"),
    ("Anna N B-PER\n\nsees O\n", r"train.txt, line 3: 2 columns; 3 are needed"),
    ("Anna\tB-PER\n\tO\n", r"train.txt, line 2: column 'tokens' is empty"),
    ("\n\n", r"train.txt: no sentences; the file is empty"),
    ("Anna O\n\nBo O\n", r"1 tag; at least two are needed"),
])  # fmt: skip
def test_a_wrong_column_is_one_line(tmp_path, text, message):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        task_of(path=str(tmp_path / "train.txt"))
    assert "\n" not in str(caught.value)


def test_other_wrong_sources_are_one_line(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"Anna O\nB\xf6 O\n")
    with pytest.raises(UserError, match=r"line 2: not UTF-8 \(byte 0xf6\)"):
        task_of(path=str(tmp_path))
    (tmp_path / "train.conll").write_text("x O\n")
    with pytest.raises(UserError, match=r"holds train.conll and train.txt; say which with task.train=<file>"):
        task_of(path=str(tmp_path))
    with pytest.raises(UserError, match=r"task.columns=\['a', 'b'\]: has no 'tokens', the column of tokens"):
        task_of(train=str(tmp_path / "train.conll"), columns=["a", "b"])
    (tmp_path / "test.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="columns beside files of another kind"):
        task_of(train=str(tmp_path / "train.conll"), test=str(tmp_path / "test.jsonl"))


def rows(path, *more):
    lines = [{"tokens": ["Anna", f"n{at}", "sleeps"], "tags": ["B-PER", "I-PER", "O"]} for at in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    return str(path)


def test_rows_hold_tokens_and_tags_or_a_text_and_spans(tmp_path):
    spans = [{"start": 6, "end": 12, "label": "LOC"}, {"start": 21, "end": 24, "label": "LOC"}]
    text = {"text": "From New Yo, to Oslo-Bay now", "spans": spans}  # the first begins inside of a word
    task = task_of(train=rows(tmp_path / "a.jsonl", text, {"text": "Nothing here.", "spans": None}))
    found = everything(task)
    assert found["From New Yo , to Oslo - Bay now"].gold == "LOC[1:4] LOC[7:8]"
    assert found["Nothing here ."].gold == "none"
    assert "1 with a span that ends inside of a word, which is counted to it" in task.notes["data"]


@pytest.mark.parametrize("row, message", [
    ({"tokens": ["a", "b"], "tags": ["O"]}, r"line 13: 2 tokens, 1 tags"),
    ({"tokens": ["a"], "tags": [3]}, r"line 13: field 'tags', item 1 is 3, no text; numbers of tags have no"),
    ({"tokens": [""], "tags": ["O"]}, r"line 13: field 'tokens', item 1 is '', no text"),
    ({"tokens": ["a"], "ner_tags": ["O"]}, r"line 13: no field 'tags'; did you mean 'ner_tags'"),
    ({"tokens": {"a": 1}, "tags": ["O"]}, r"line 13: field 'tokens' is no list of texts"),
    ({"text": "ab", "spans": [{"start": 0, "end": 3, "label": "X"}]}, r"line 13: span 0 to 3 is not in the text of 2"),
    ({"text": "a b", "spans": [{"start": 0, "end": 3, "label": "X"}, {"start": 2, "end": 3, "label": "Y"}]},
     r"line 13: span 2 to 3 \(Y\) overlaps another"),
    ({"text": "a b", "spans": [{"start": "0", "end": 3, "label": "X"}]}, r"line 13, span 1: start '0' and end 3"),
    ({"text": "a b", "spans": [{"start": 0, "end": 3}]}, r"line 13, span 1: no field 'label'"),
    ({"text": "a b", "spans": [7]}, r"line 13, span 1: no field 'start'"),
    ({"text": "a b", "spans": 7}, r"line 13: field 'spans' is no list of spans"),
    ({"tokens": ["a"], "tags": ["B-a b"]}, r"the tag 'B-a b' has a space in it"),
])  # fmt: skip
def test_a_wrong_row_is_one_line(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        task_of(train=rows(tmp_path / "a.jsonl", row))
    assert "\n" not in str(caught.value)


def test_tags_of_a_hub_dataset_have_their_names(monkeypatch):
    features = datasets.Features({
        "id": datasets.Value("string"), "tokens": datasets.List(datasets.Value("string")),
        "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER", "I-PER"])),
    })  # fmt: skip
    rows = {
        "id": list("abcdefghij"),
        "tokens": [["Anna", f"n{at}", "ran"] for at in range(10)],
        "ner_tags": [[1, 2, 0]] * 10,
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    found = datasets.DatasetDict({"train": made})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset, revision=None: found)
    task = task_of(path="owner/ner", tags="ner_tags")
    assert task.labels == ("B-PER", "I-PER", "O") and {example.gold for example in task.train} == {"PER[0:2]"}


def test_snips_pieces_become_tags_and_latin_1_is_said(tmp_path):
    def file(name, encoding, n):
        rest = [{"text": "Bj\xf6rk Gu\xf0", "entity": "artist"}, {"text": "'s hit\n"}]
        queries = [{"data": [{"text": f"{name[0]}{at} "}, *rest]} for at in range(n)]
        (tmp_path / name).write_bytes(json.dumps({"PlayMusic": queries}, ensure_ascii=False).encode(encoding))

    file("train_PlayMusic_full.json", "latin-1", 12)
    file("validate_PlayMusic.json", "utf-8", 14)
    task = load({"name": "snips_slots", "path": str(tmp_path), "n_validation": 2, "n_heldout": 0}, 0)
    assert "train_PlayMusic_full.json is in Latin-1" in task.notes["data"] and "validate_" not in task.notes["data"]
    (example, *_) = task.test
    assert example.meta["words"][1:] == ["Bj\xf6rk", "Gu\xf0", "'", "s", "hit"] and example.gold == "artist[1:3]"
    (tmp_path / "validate_PlayMusic.json").write_text('{"PlayMusic": [{"data": [{"entity": "x"}]}]}')
    with pytest.raises(UserError, match="validate_PlayMusic.json, PlayMusic 1: a piece without text"):
        load({"name": "snips_slots", "path": str(tmp_path)}, 0)
