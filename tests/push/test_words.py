"""`lorax push`: what may be typed, and which run is meant."""

import json

import pytest

from lorax.errors import UserError
from lorax.push.__main__ import main
from lorax.push.folder import refuse_foreign
from lorax.push.saved import find
from lorax.push.words import parse
from lorax.records import RunRecord, Store, run_id


def test_words():
    order = parse(["ab12", "me/it", "--private", "rank=4", "folder=a/b", "message=one = two"])
    assert (order.run, order.repo, order.private, order.rank, str(order.folder)) == ("ab12", "me/it", True, 4, "a/b")
    assert order.message == "one = two" and not order.dry_run
    assert parse(["ab12", "--dry-run", "folder=x"]).repo is None and parse(["ab12", "dry_run=true", "folder=x"]).dry_run


@pytest.mark.parametrize(
    "words, line",
    [
        ([], "which run"),
        (["ab12"], "where to"),
        (["ab12", "--dry-run"], "folder=<folder>"),
        (["ab12", "me/it", "more"], "one run and one repository"),
        (["ab12", "me/it", "privat=true"], "privat: no such option of push; did you mean 'private'"),
        (["ab12", "me/it", "--dryrun"], "did you mean 'dry_run'"),
        (["ab12", "me/it", "private=yes"], "private=yes: must be true or false"),
        (["ab12", "me/it", "rank=0"], "rank=0: a whole number"),
        (["ab12", "me/it", "rank=x"], "rank=x: a whole number"),
        (["ab12", "me/it", "--rank"], "rank: a value is missing"),
        (["ab12", "me/it", "folder="], "folder: a value is missing"),
        (["ab12", "a/b/c"], "a/b/c: no name of a repository"),
        (["ab12", "me/i t"], "no name of a repository"),
    ],
)
def test_bad_words_are_one_line(capsys, words, line):
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and line in said[0] and len(said[0]) <= 320, said


def written(store, name="small", **more):
    identity = {"init": {"name": "lora"}, "seed": len(list(store.root.rglob("*.json")))}
    made = {"status": "finished", "config": {"init": {"name": "lora"}}, "costs": {"trainable": 5}, **more}
    record = RunRecord(run_id=run_id(identity), name=name, identity=identity, **made)
    store.write(record, [])
    return record


@pytest.mark.parametrize(
    "more, line",
    [
        ({"status": "failed", "error": "no space"}, "failed: no space"),
        ({"costs": {"trainable": 0}}, "trains nothing: there is no adapter"),
        ({"provenance": {"overrides": ["rank=4", "name=small", "label=a b"]}},
         "saved no adapter; .*lorax.run rank=4 'label=a b' name=small_saved save=<folder>"),
        ({"provenance": {"saved": "/a/place/that/is/gone"}}, "/is/gone, which is not there; give the folder"),
        ({"provenance": {"saved": None, "save_error": "disk full"}}, r"could not save its adapter \(disk full\)"),
    ],
)  # fmt: skip
def test_a_run_without_an_adapter_says_how_to_get_one(tmp_path, more, line):
    store = Store(tmp_path)
    record = written(store, **more)
    for word in (record.run_id, record.run_id[:5], f"small/{record.run_id}"):
        with pytest.raises(UserError, match=line):
            find(word, store)


def test_an_unknown_run_names_the_nearest(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(UserError, match="abcd: no such run in .*; there are no records"):
        find("abcd", store)
    record = written(store)
    with pytest.raises(UserError, match=f"did you mean '{record.run_id}'"):
        find(record.run_id[:-1] + ("0" if record.run_id[-1] != "0" else "1"), store)
    for word in (f"smal/{record.run_id}", record.run_id[:3], "./gone", ""):
        with pytest.raises(UserError, match="no such run"):
            find(word, store)
    empty, foreign, info = tmp_path / "empty", tmp_path / "foreign", {"format": 2}
    empty.mkdir(), foreign.mkdir()
    (foreign / "adapter.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="no saved adapter"):
        find(str(empty), store)
    with pytest.raises(UserError, match="adapter.json: lacks"):
        find(str(foreign), store)


def test_a_folder_with_other_files_is_not_uploaded(tmp_path):
    refuse_foreign(tmp_path / "new")
    for name in ("README.md", "adapter_config.json", "tokenizer.json", "merges.txt"):
        (tmp_path / name).write_text("")
    refuse_foreign(tmp_path)
    (tmp_path / ".env").write_text("key")
    with pytest.raises(UserError, match="holds .env, which is no part of an adapter"):
        refuse_foreign(tmp_path)
    with pytest.raises(UserError, match="a file, not a folder"):
        refuse_foreign(tmp_path / ".env")
