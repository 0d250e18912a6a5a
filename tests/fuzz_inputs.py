"""Inputs for the fuzz test: everything a user can hand over, changed at random from what works."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorax.config import conf_dir
from lorax.records import RunRecord, Store, run_id
from lorax.running.messages import keys, options

SMALL = [
    "model=toy", "task=toy", "steps=1", "track=none", "dtype=float32", "task.n_test=2", "task.n_train=16",
    "task.n_validation=2", "task.n_heldout=2", "base=false", "cache=off", "device=cpu", "rank=2",
]  # fmt: skip
VALUES = [
    "abc", "-1", "0", "1", "3", "1e12", "1000000000000", "0.5", "nan", "inf", "-inf", "null", "true", "false", "[]",
    "{}", "[1,2]", "{a: 1}", "''", "'a b'", "'a\nb'", "${nope}", "${oc.env:HOME}", "${rank}", "../x", "/etc/passwd",
    ".",
    "a/b/c", "1,2", "0x10", "1_000", "\u00e9", "\u2028", "\x1b[31m", "=1+1", "<script>", "a|b", "%s", "{0}",
    "$(touch x)",
    "lora", "toy", "x" * 5000, "[[[[1]]]]", "1e-300", "1e308", "9" * 40, "\\", "'", '"', "range(1,3)", "choice(1,2)",
    "glob(*)", "!!python/name:os.system", "2024-01-01", "None", "auto",
]  # fmt: skip
PLAIN: list[Any] = [
    None, True, False, 0, -1, 3, 10**12, 2**70, 0.5, -0.0, float("nan"), float("inf"), "", "abc", "a\nb", "../x", [],
    {},
    [1], [[]], [None], {"a": 1}, {"a": {"b": []}}, {3: 4}, "x" * 5000, "lora", "1e-3", "<script>", "\ud800", "${nope}",
]  # fmt: skip
NESTED = [
    "init.name", "init.lr_prior", "init.alpha", "init.width", "init.pattern", "init.share", "task.name", "task.family",
    "task.kind", "task.length", "task.letters", "task.n_train", "task.n_test", "task.lr", "task.steps",
    "task.batch_size",
    "task.path", "model.name", "model.family", "model.kind", "model.hidden", "model.layers", "model.context",
    "model.path",
    "model.attention", "hydra.job.name", "hydra.launcher.lanes", "hydra.sweep.subdir", "nope", "rnak", "train.warmpu",
]  # fmt: skip
SAFE = {"results_dir", "save", "track", "device", "study", "name"}
"""Keys whose values would lead the run elsewhere; `name` and `save` are tried with values of their own."""
FLAGS = [
    "-m",
    "--multirun",
    "--cfg",
    "--resolve",
    "-x",
    "--info",
    "--package=a",
    "--config-name=nope",
    "-c",
    "--nope=3",
]


@dataclass
class Input:
    """One thing to try."""

    kind: str
    words: list[str]
    """Of `lorax.run`, or of `lorax.tables` where `kind` is record."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Written beforehand, by their path below the working folder."""
    small: bool = True


def draw(seed: int) -> Input:
    """Return the input of a seed."""
    pick = random.Random(f"fuzz {seed}")
    return [_words, _words, _words, _group, _syntax, _study, _yaml, _data, _record][seed % 9](pick)


def _value(pick: random.Random) -> str:
    return pick.choice(VALUES)


def _words(pick: random.Random) -> Input:
    known = [key for key in [*keys(), *NESTED] if key not in SAFE]
    words = []
    for _ in range(pick.choice((1, 1, 2))):
        sign = pick.choice(("", "", "", "+", "++", "~"))
        key = pick.choice(known)
        words.append(f"{sign}{key}" if sign == "~" and pick.random() < 0.7 else f"{sign}{key}={_value(pick)}")
    if pick.random() < 0.1:
        words.append("name=" + pick.choice(["x" * 5000, "../x", "a/../b", ".", "a b", "", "'a\nb'", "-", "\u00e9"]))
    return Input("words", words)


def _group(pick: random.Random) -> Input:
    group = pick.choice(("init", "init", "task", "model", "experiment", "debug", "hydra/launcher", "hydra/sweeper"))
    named = options(group) if "/" not in group else ["basic", "packed", "joblib", "nope"]
    choice = pick.choice([*named, _value(pick), "/x/mine.jsonl", "Qwen/Qwen3-0.6B"])
    heavy = ("six", "smollm2", "minilm", "diagnostics", "needle", "joblib")
    choice = "nope" if any(part in choice for part in heavy) else choice
    return Input("group", [f"{pick.choice(('', '', '+', '++'))}{group}={choice}", *_words(pick).words[:1]])


def _syntax(pick: random.Random) -> Input:
    words = ["rank=4", "init=pissa", "seed=1", "targets=[q_proj,v_proj]", "train.warmup=0.2"]
    at = pick.randrange(len(words))
    word = list(words[at])
    for _ in range(pick.choice((1, 2, 3))):
        place = pick.randrange(len(word) + 1)
        word[place:place] = pick.choice(
            ["=", "[", "]", "{", ",", "'", '"', " ", "\n", "@", ":", "~", "$", "\\", "\x00"[:0], "é"]
        )
    words[at] = "".join(word)
    if pick.random() < 0.3:
        words.insert(pick.randrange(len(words)), pick.choice(FLAGS))
    return Input("syntax", words)


def _study_mapping() -> dict[str, Any]:
    data = yaml.safe_load((conf_dir() / "study/toy.yaml").read_text())
    data["fixed"] |= {"dtype": "float32", "cache": "off", "task.n_train": 32, "task.n_test": 4, "task.n_validation": 4}
    arms = [{"init": "none", "trained": False}, "lora"]  # few: each is composed several times
    return data | {"plan": True, "costs": None, "arms": arms, "blocks": {"all": ["none", "lora"]}}


def _study(pick: random.Random) -> Input:
    data = _study_mapping()
    for _ in range(pick.choice((1, 1, 2))):
        _change(pick, data, keep=("plan",))
    text = yaml.safe_dump(data, allow_unicode=False).encode()
    return Input("study", ["study=mine.yaml", "track=none"], {"mine.yaml": text}, small=False)


def _yaml(pick: random.Random) -> Input:
    text = _damaged(pick, yaml.safe_dump(_study_mapping()).encode())
    words = ["--config-dir=conf", "+study=mine", "study.plan=true", "study.costs=null", "track=none"]
    return Input("yaml", words, {"conf/study/mine.yaml": text}, small=False)


def _data(pick: random.Random) -> Input:
    rows: list[Any] = [{"prompt": f"p{at}", "answer": str(at % 3)} for at in range(40)]
    if pick.random() < 0.7:
        at = pick.randrange(len(rows))
        rows[at] = pick.choice(PLAIN) if pick.random() < 0.3 else {**rows[at], "answer": pick.choice(PLAIN)}
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if pick.random() < 0.7:
        text = _damaged(pick, text)
    words = ["task=jsonl", "task.path=mine.jsonl", "task.n_heldout=2", "task.max_new_tokens=1"]
    return Input("data", words, {"mine.jsonl": text})


def _record(pick: random.Random) -> Input:
    files = {}
    identity = {"init": {"name": "lora", "rank": 8}, "seed": 0, "task": {"name": "toy"}}
    record = RunRecord(run_id(identity), "small", "finished", {**identity, "lr": 0.1}, identity, task={"name": "toy"},
                       scores={"test": {"score": 0.5, "n": 2}}, costs={"trainable": 8})  # fmt: skip
    data = json.loads(record.to_json())
    _change(pick, data, keep=())
    text = json.dumps(data).encode()
    path = Store("results").path("small", record.run_id)
    files[str(path)] = _damaged(pick, text) if pick.random() < 0.4 else text
    if pick.random() < 0.4:
        files[str(path.with_suffix(".items.jsonl.gz"))] = _damaged(pick, b"\x1f\x8b\x08\x00" + bytes(30))
    words = [pick.choice(("small", "small", "rescore=small", "../x", "nope", "-x", "a=b", "items=x", "import=results"))]
    return Input("record", words, files, small=False)


def _change(pick: random.Random, data: Any, keep: tuple[str, ...]) -> None:
    """Change one value of nested data, take it out, or add one."""
    places = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            if key not in keep:
                places.append((node, key))
                if isinstance(node[key], dict | list):
                    walk(node[key])

    walk(data)
    node, key = pick.choice(places)
    way = pick.random()
    if way < 0.7:
        node[key] = pick.choice(PLAIN)
    elif way < 0.85 or not isinstance(node, dict):
        del node[key]
    else:
        node[pick.choice(["nope", "rank", 3, "a b"])] = pick.choice(PLAIN)


def _damaged(pick: random.Random, raw: bytes) -> bytes:
    """Return bytes with one piece changed."""
    at = pick.randrange(len(raw) or 1)
    some = pick.choice(
        [b"", b"\x00", b"\xff\xfe", b"\t", b"\n", b'"', b"{", b"]", b"&a [*a]", b"!!python/name:os.x ", b": "]
    )
    cut = pick.choice([0, 1, 1, 7, len(raw)])
    if pick.random() < 0.05:
        return pick.choice([b"", b"[" * 100_000, b"9" * 5000, b"\xef\xbb\xbf" + raw, b"null", b"3\n", raw + raw])
    return raw[:at] + some + raw[at + cut :]


def write(files: dict[str, bytes]) -> None:
    """Write an input's files below the working folder."""
    for name, raw in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(raw)
