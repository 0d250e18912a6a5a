"""Whatever a user writes is answered by one line of at most 300 characters, exit code 2, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lorax.config import conf_dir
from lorax.errors import LONGEST, UserError, one_line
from lorax.running.command.words import hydra_words
from lorax.studies.parse import from_mapping

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{here}: &{here} [{','.join(9 * [f'*{before}'])}]\n" for before, here in zip("abcdefg", "bcdefgh", strict=True)
)
LONG = 5000 * "x"


def refusal(capsys):
    lines = capsys.readouterr().err.strip("\n").split("\n")
    assert len(lines) == 1 and lines[0].startswith("lorax: ") and len(lines[0]) <= LONGEST + len("lorax: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\n\tb: 2\n", ["line 2"]),
        (b"a: \0\n", ["character 4"]),
        ("name: x\nname: y\n", ["line 2", "duplicate key"]),
        ("a: &a [*a]\n", ["line 1", "holds itself"]),
        ("&a\nname: x\nb: *a\n", ["holds itself"]),
        (BOMB, ["100,000 values"]),
        ("a: !!python/object/apply:os.mkdir [ran]\n", ["python/object/apply:os.mkdir", "not read"]),
        ("a: !mine 3\n", ["!mine"]),
        ("a: [1\n", ["line 2"]),
        (b"name: \xff\xfe\n", ["UTF-8"]),
        (3000 * "[", ["deeply"]),
        ("3\n", ["the value 3"]),
    ],
    ids=["tab", "nul", "twice", "loop", "loop at the top", "bomb", "code", "tag", "open", "bytes", "deep", "number"],
)
def test_yaml_that_cannot_be_read(lorax, capsys, tmp_path_factory, text, parts):
    group = ("study", "init")[len(text) % 2]
    folder = tmp_path_factory.mktemp("conf")
    (folder / group).mkdir()
    (folder / group / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    word = "+study=mine" if group == "study" else "init=mine"
    assert lorax(f"--config-dir={folder}", word, small=False) == 2
    line = refusal(capsys)
    assert "mine.yaml" in line and all(part in line for part in parts), line
    assert not list(Path().iterdir())
    assert lorax(f"study={folder / group / 'mine.yaml'}", small=False) == 2  # named by its file
    line = refusal(capsys)
    assert "mine.yaml" in line and all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["hydra.launcher=off"], ["hydra/launcher"]),
        (["hydra.sweeper=off"], ["hydra/sweeper"]),
        (["--resolve"], ["--resolve", "--cfg"]),
        (["--cfg=nope"], ["nope", "job"]),
        (["--multirum"], ["--multirum", "'--multirun'"]),
        (["--config-dir=/nope"], ["/nope"]),
        (["model.hidden=abc"], ["model.hidden=abc", "whole number"]),
        (["model.layers=10000"], ["model.layers=10000", "between 1 and 256"]),
        (["-m", "model.attention=egaer", "seed=0,1"], ["model.attention=egaer", "'eager'"]),
        (["model.layers=[1]"], ["model.layers=[1]", "whole number"]),
        (["init.name=[]"], ["init.name=[]", "text"]),
        (["init.lr_prior=abc"], ["init.lr_prior=abc", "number"]),
        (["init=svft", "init.width=wide"], ["width=wide", "whole number"]),
        (["+rnak=16"], ["rnak", "'rank'"]),
        (["++train.warmpu=0.2"], ["train.warmpu", "'train.warmup'"]),
        (["+train.warm=0.2"], ["train.warm"]),
        (["lr=${oc.env:LORAX_TEXT}"], ["could not be converted"]),
        (["lr=${nope}"], ["nope"]),
        (["lr='a\nb'"], ["lr='a", "number"]),
        (["name='a\nb'"], ["name="]),
        (["name=."], ["name='.'"]),
        ([f"name={LONG}"], ["name='xxx", "longer than"]),
        ([f"rank={LONG}"], ["rank=xxx", "whole number"]),
        ([f"{LONG}=3"], ["xxx"]),
        (["steps=1000000000000"], ["steps=1000000000000", "1,000,000"]),
        (["batch_size=17"], ["batch_size=17", "16 training examples"]),
        (["batch_size=1000000000000"], ["batch_size", "100,000"]),
        (["train.calibration_batches=1000000000000"], ["train.calibration_batches", "1,000"]),
        (["task.n_train=1000000000000"], ["task.n_train", "1,000,000"]),
        (["model=Qwen/Qwen3-0.6B"], ["model=hf model.path=Qwen/Qwen3-0.6B"]),
        (["task=/x/mine.jsonl"], ["task=jsonl task.path=/x/mine.jsonl"]),
        (["-m", "model=Qwen/Qwen3-0.6B,toy"], ["model=hf model.path=Qwen/Qwen3-0.6B"]),
        (["study=/nope/mine.yaml"], ["/nope/mine.yaml"]),
        (["study=/nope/mine"], [".yaml", "--config-dir"]),
        (["study=toy", "model=hf"], ["conf/study/toy.yaml", "study=<the copy>.yaml"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_command_lines(lorax, capsys, monkeypatch, words, parts):
    monkeypatch.setenv("LORAX_TEXT", "text\nof two lines")
    given = words if any(word.startswith("study") for word in words) else ["task.n_train=16", *words]
    assert lorax(*given, small=given is not words) == 2
    line = refusal(capsys)
    assert all(part in line for part in parts), line
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("task.path=~/mine.jsonl", "task.path='~/mine.jsonl'"),
        ("task.path=d\u00e4ten (1)=b.jsonl", "task.path='d\u00e4ten (1)=b.jsonl'"),
        (r"targets=.*\.(q|v)_proj", r"targets='.*\.(q|v)_proj'"),
        ("task.path=a.jsonl,~/b.jsonl", "task.path=a.jsonl,'~/b.jsonl'"),
        ("rank=range(1,3)", "rank=range(1,3)"),
        ("label='(a)'", "label='(a)'"),
        ("~init", "~init"),
        ("lr=${oc.env:HOME}", "lr=${oc.env:HOME}"),
    ],
)
def test_values_that_hydra_takes_only_in_quotes_get_them(word, expected):
    assert hydra_words([word]) == [expected]


def test_a_tilde_is_the_home_folder_of_paths(lorax, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    rows = "".join(json.dumps({"prompt": f"p{at}", "answer": "a"}) + "\n" for at in range(40))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.jsonl").write_text(rows)
    words = ["task=jsonl", "task.path=~/mine.jsonl", "steps=1", "task.max_new_tokens=1", "base=false", "save=~/kept"]
    assert lorax("task.n_train=16", *words, results="~/res") == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"mine.jsonl", "res", "kept"}
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(("given", "value"), [("8G", 8 * 2**30), ("500MB", 500 * 2**20), (" 12 kib", 12288), ("7", 7)])
def test_the_size_of_the_cache_has_units(monkeypatch, given, value):
    from lorax.probing.cache import Cache

    monkeypatch.setenv("LORAX_CACHE_BYTES", given)
    assert Cache.default().max_bytes == value


@pytest.mark.parametrize("given", ["", "8X", "-1", "nan", "1.5", "8 G G"])
def test_a_size_that_is_none_is_refused(monkeypatch, given):
    from lorax.probing.cache import Cache

    monkeypatch.setenv("LORAX_CACHE_BYTES", given)
    with pytest.raises(UserError, match="LORAX_CACHE_BYTES="):
        Cache.default()


TOY = yaml.safe_load((conf_dir() / "study/toy.yaml").read_text())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation_items": []}, r"validation_items=\[\]"),
        ({"validation_items": -1}, "validation_items=-1"),
        ({"test_items": 0}, "test_items=0"),
        ({"assumed_sd": float("nan")}, "assumed_sd=nan: a finite number"),
        ({"assumed_sd": -1}, "assumed_sd=-1: must be above 0"),
        ({"assumed_sd": 1e308}, "at most 1"),
        ({"assumed_sd": True}, "assumed_sd=True"),
        ({"blocks": {"x": 2}}, r"blocks\.x=2: a list"),
        ({"blocks": {"x": ["lora", 3]}}, r"blocks\.x"),
        ({"per_task": {"toy": 3}}, r"per_task\.toy=3: a mapping"),
        ({"fixed": {"results_dir": "elsewhere"}}, r"fixed\.results_dir: .*command line"),
        ({"fixed": {3: 4}}, "3 is no key"),
        ({"fixed": {"train": {"clip": 1}}}, r"write train\.<field>"),
        ({"tasks": [[]]}, "tasks"),
        ({"name": "../x"}, "name='../x'"),
        ({"metric": []}, r"metric=\[\]"),
        ({"arms": ["lora", {"init": "pissa", "label": []}]}, r"arms\[1\]\.label"),
        ({"arms": ["lora", {"init": "pissa", "trained": "no"}]}, r"arms\[1\]\.trained=no"),
        ({"arms": ["lora", None]}, r"arms\[1\]"),
        ({"tuning": {"points": 10**9}}, "at most"),
        ({"tuning": {"halving": {"steps": 0}}}, "at least 1"),
        ({"tuning": {"halving": {"steps": 3, "keep": 0}}}, "keep=0"),
        ({"costs": {"steps": 0}}, "at least 1"),
        ({"seeds": [2**70]}, "2.63"),
        ({"margin": float("inf")}, "margin=inf"),
    ],
    ids=str,
)
def test_values_of_a_study(changed, message):
    with pytest.raises(UserError, match=message):
        from_mapping({**TOY, "blocks": {}, **changed})


def test_null_in_a_study_is_the_default():
    spec = from_mapping({**TOY, "test_items": None, "per_task": {"toy": None}, "assumed_sd": None, "seeds": None})
    assert spec.test_items == 1000 and spec.per_task == {"toy": {}} and spec.assumed_sd == 0.01


def test_the_kind_of_an_unexpected_error_is_said_and_the_way_to_its_traceback(lorax, capsys, monkeypatch):
    from lorax.running import preflight

    def broken(configs):
        raise ZeroDivisionError("of\nsomething")

    monkeypatch.setattr(preflight, "preflight", broken)
    assert lorax("rank=2") == 2
    assert refusal(capsys) == "lorax: ZeroDivisionError: of something (LORAX_TRACEBACK=1 shows where)"
    monkeypatch.setenv("LORAX_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        lorax("rank=2")


def test_lines_keep_what_matters_and_their_length():
    line = one_line(UserError(f"name={LONG}: " + ", ".join(map(str, range(1000)))))
    assert len(line) == LONGEST and line.startswith("name=x") and ": 0, 1, 2" in line
    assert one_line(UserError("\x1b[31mred\ud800")) == "\\x1b[31mred\\ud800"
