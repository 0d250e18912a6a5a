"""Translation: pairs from catalogues, tables and hub columns, what is left out and said, and the scores."""

import json
import math
import struct
from dataclasses import replace

import datasets
import polib
import pytest
from sacrebleu.metrics import CHRF

from lorax.errors import UserError
from lorax.tasks import load
from lorax.tasks.base import Example
from lorax.tasks.translations import Translations

PO = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "Open the file"
msgstr "Abra o arquivo"

msgctxt "menu"
msgid "Close the file"
msgstr "Feche "
"o arquivo"

#, fuzzy
msgid "Save it"
msgstr "Guarde"

msgid "Not yet done"
msgstr ""

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d arquivo"
msgstr[1] "%d arquivos"

#~ msgid "Gone now"
#~ msgstr "Perdido"
"""


def catalogue(path, pairs):
    """Write a PO or MO file of {source: target}."""
    made = polib.POFile()
    made.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    for source, target in pairs.items():
        made.append(polib.POEntry(msgid=source, msgstr=target))
    (made.save_as_mofile if path.suffix == ".mo" else made.save)(str(path))


def many(n=40, start=0):
    return {f"Open the file number {k}": f"Abra o arquivo número {k}" for k in range(start, start + n)}


def spec(path, **options):
    return {"name": "translation", "path": str(path), **options}


def pairs_of(task):
    return {(e.prompt, e.answer) for split in ("train", "validation", "test", "heldout") for e in task.examples(split)}


def test_a_po_file_gives_its_finished_messages_and_says_what_it_leaves_out(tmp_path):
    (tmp_path / "a.po").write_text(PO + "\n".join(f'\nmsgid "{s}"\nmsgstr "{t}"\n' for s, t in many().items()))
    task = load(spec(tmp_path / "a.po"))
    assert pairs_of(task) == {
        ("Open the file", "Abra o arquivo"),
        ("Close the file", "Feche o arquivo"),
        *many().items(),
    }
    assert "a.po: left out messages: 1 fuzzy, 1 obsolete, 1 untranslated, 1 with plural forms" in task.notes["data"]


@pytest.mark.parametrize("suffix", [".mo", ".po"])
def test_a_folder_of_catalogues_is_one_set_and_its_splits_share_no_source(tmp_path, suffix):
    catalogue(tmp_path / f"one{suffix}", many())
    catalogue(tmp_path / f"two{suffix}", many(30, start=20))
    (tmp_path / "LICENSE.txt").write_text("none of the data\n")
    task = load(spec(tmp_path))
    assert pairs_of(task) == {*many(50).items()}
    assert "read 70 rows, kept 50, dropped 20 (same prompt and answer: 20)" in task.notes["data"]
    sources = [e.id for split in ("train", "validation", "test", "heldout") for e in task.examples(split)]
    assert len(sources) == len(set(sources)) == 50


def test_both_ways_and_the_same_pairs_from_every_kind_of_file(tmp_path):
    pairs = many()
    catalogue(tmp_path / "a.mo", pairs)
    (tmp_path / "b.tsv").write_text("\n".join(f"{s}\t{t}" for s, t in pairs.items()) + "\n")
    nested = [json.dumps({"id": 1, "translation": {"en": s, "pt": t}}) for s, t in pairs.items()]
    (tmp_path / "c.jsonl").write_text("\n".join(nested) + "\n")
    tasks = [
        load(spec(tmp_path / "a.mo")), load(spec(tmp_path / "b.tsv", columns=["source", "target"])),
        load(spec(tmp_path / "c.jsonl", source="en", target="pt")),
    ]  # fmt: skip
    assert tasks[0].train == tasks[1].train == tasks[2].train and tasks[0].digest == tasks[2].digest
    back = load(spec(tmp_path / "c.jsonl", source="pt", target="en"))
    assert pairs_of(back) == {(t, s) for s, t in pairs.items()}


def test_a_hub_set_with_a_translation_column(tmp_path):
    rows = [{"en": s, "pt": t} for s, t in many().items()]
    made = datasets.Dataset.from_dict({"id": list(range(len(rows))), "translation": rows})
    made.cast_column("translation", datasets.Translation(languages=("en", "pt"))).save_to_disk(str(tmp_path / "set"))
    task = load(spec(tmp_path / "set", source="en", target="pt", template="translate English to Portuguese: {en}"))
    assert {e.meta["source"]: e.answer for e in task.train}.items() <= many().items()
    assert all(e.prompt == f"translate English to Portuguese: {e.meta['source']}" for e in task.train)
    with pytest.raises(UserError, match=r"row 0: no field 'de'"):
        load(spec(tmp_path / "set", source="de", target="pt"))


MARKED = [
    "Use <b>bold</b> text", "Tom &amp; Jerry meet", "The ~File menu opens", "The &File menu opens", "A _File opens",
    "Open %s file now", "Open %1 file now", "Hello {name} and all", "About %PRODUCTNAME here", "Give $(ARG1) away now",
    "Set max_words to two", "one line\ntwo lines here",
]  # fmt: skip
PLAIN = ["The R&D group meets", "It is 100 %", "Is 3 < 4?", "It costs 5$ now", "A key (see below)", "It cost 5 $ today"]


def test_markup_and_length_are_options_and_counted(tmp_path):
    pairs = many() | {text: f"alvo {k}" for k, text in enumerate([*MARKED, *PLAIN])} | {"Two words": "Duas palavras"}
    pairs |= {"A plain source text": "mas <b>aqui</b>"}
    catalogue(tmp_path / "a.mo", pairs)
    kept = load(spec(tmp_path / "a.mo"))
    assert len(pairs_of(kept)) == len(pairs)
    task = load(spec(tmp_path / "a.mo", markup="drop", min_words=4, max_words=4))
    four = {text for text in PLAIN if len(text.split()) == 4}
    assert {source for source, _ in pairs_of(task)} == four
    out = {f"{len(many()) + len(PLAIN) - len(four)} over 4 words", f"{len(MARKED) + 1} with markup", "1 under 4 words"}
    assert {*task.notes["data"].partition(";")[0].removeprefix("left out ").split(", ")} == out
    with pytest.raises(UserError, match="too few to split; left out .* over 1 words"):
        load(spec(tmp_path / "a.mo", max_words=1))


def test_what_test_shares_with_train_is_said(tmp_path):
    catalogue(tmp_path / "train.po", many() | {f"Start file {k}": "Abra o arquivo número 99" for k in range(9)})
    catalogue(tmp_path / "test.po", many(3) | {"Begin a file": "Abra o arquivo número 99"})
    task = load(spec(tmp_path))
    assert "3 training sources stand in test too and were taken out of train" in task.notes["data"]
    assert "1 of 4 test references are also those of other sources in train" in task.notes["data"]
    assert not {e.prompt for e in task.train} & {e.prompt for e in task.test}


@pytest.mark.parametrize("options, words", [
    ({"markup": "dropp"}, "did you mean 'drop'"), ({"max_words": 0}, "task.max_words=0: an integer of at least 1"),
    ({"min_words": 5, "max_words": 4}, "task.max_words=4: an integer of at least 5"),
    ({"min_words": True}, "task.min_words=True"), ({"max_tokens": 1}, "task.max_tokens=1: an integer of at least 2"),
    ({"target": "source"}, "the same field"), ({"sorce": "en"}, "did you mean 'source'"),
    ({"template": "say {target}"}, "is the answer"),
])  # fmt: skip
def test_bad_options_are_one_line(tmp_path, options, words):
    catalogue(tmp_path / "a.mo", many())
    with pytest.raises(UserError, match=words) as caught:
        load(spec(tmp_path / "a.mo", **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, content, words", [
    ("a.po", 'msgid "a"\nmsgstr "b"\nmsgstx "c"\n', "line 3"), ("a.po", "", "no rows"), ("a.po", "msgid", "line 1"),
    ("a.po", b'msgid "a"\nmsgstr "\xe9"\n', "line 2: not UTF-8"), ("a.mo", b"abc", "no MO file"),
    ("a.mo", b"\xde\x12\x04\x95" + b"\0" * 4, "no MO file"), ("a.mo", b"not a catalogue at all", "no MO file"),
    ("a.mo", struct.pack("<7I", 0x950412DE, 0, 9, 28, 100, 0, 28), "no MO file"),
])  # fmt: skip
def test_a_damaged_catalogue_is_one_line_with_its_name(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        load(spec(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def task_of(*pairs):
    examples = tuple(Example(str(k), s, t, meta={"source": s}) for k, (s, t) in enumerate(pairs))
    return Translations(name="t", kind="generation", train=examples, validation=examples, test=examples)


def test_an_item_s_score_is_its_chrf_and_a_split_has_corpus_scores_with_signatures():
    task = task_of(("the cat", "o gato"), ("a dog", "um cão"))
    items = [
        {"completion": said, "answer": example.answer, **task.score(example, said)}
        for example, said in zip(task.test, ["o gato", "um gato"], strict=True)
    ]
    assert items[0]["score"] == items[0]["exact"] == 1 and items[1]["exact"] == 0
    assert items[1]["score"] == CHRF().sentence_score("um gato", ["um cão"]).score / 100
    total = task.overall(items)
    corpus = CHRF().corpus_score(["o gato", "um gato"], [["o gato", "um cão"]]).score / 100
    assert total["chrf"] == corpus != sum(item["score"] for item in items) / 2
    assert total["exact"] == 0.5 and math.isclose(total["sd"], (1 - items[1]["score"]) / math.sqrt(2))
    assert "nc:6|nw:0" in total["signatures"]["chrf"] and "tok:13a" in total["signatures"]["bleu"]


def test_chrf_of_one_pair_by_its_definition():
    """n-grams of characters without white space, n 1 to 6, F with beta 2 of mean precision and recall."""
    said, wanted = "um gato", "um cão"
    a, b = said.replace(" ", ""), wanted.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, 7):
        left, right = ([text[k : k + n] for k in range(len(text) - n + 1)] for text in (a, b))
        if left and right:
            hits = sum(min(left.count(gram), right.count(gram)) for gram in set(left))
            precisions.append(hits / len(left)), recalls.append(hits / len(right))
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    score = task_of((said, wanted)).score(Example("1", said, wanted), said)["score"]
    assert math.isclose(score, 5 * p * r / (4 * p + r))


def test_the_floor_is_copying_the_source():
    task = task_of(("Windows XP", "Windows XP"), ("the cat", "zzz"))
    assert task.majority == 0.5 and task.floor_is == "copying the source"
    assert replace(task, test=()).majority is None and task.overall([]) == {}
