"""Reading a study: from conf/study/<name>.yaml to a checked StudySpec, with errors of one line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from lorax.errors import UserError, near, one_line
from lorax.stats.estimands import ESTIMANDS
from lorax.stats.judge import PROCEDURES
from lorax.stats.rule import CLAIMS
from lorax.studies.seeds import MOST_LOOKS, check_until_decided, read_seeds, read_until_decided
from lorax.studies.spec import Arm, Costs, Halving, Match, StudySpec, Tuning

COMMANDS = ("plan", "register", "anchor")
"""Keys that say what a command does with a study, and are no part of it."""
METRICS = ("score", "tolerant")
LEAST_POINTS, LEAST_TUNING_SEEDS = 6, 2
SEEDS = {"method": tuple(range(8)), "rate": tuple(range(6))}
"""Final seeds where a study names none."""
MOST_POINTS, MOST_PER_DECADE = 1000, 1000


def from_mapping(data: Mapping[str, Any], where: str = "study") -> StudySpec:
    """Read and check a study.

    Args:
        data: the mapping of the YAML file.
        where: its name in error lines.

    Raises:
        UserError: an unknown or missing key, a wrong value; one line that names it.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}={data}: a mapping is needed, `key: value` on each line")
    data = {key: value for key, value in dict(data).items() if key not in COMMANDS}
    _known(data, StudySpec, where, without={"centres", "matched", "consumes", "until_decided"})
    for key, kinds in _SHAPES.items():
        _shaped(data.get(key), kinds, f"{where}.{key}")
    for key in ("name", "model", "tasks", "arms", "reference", "margin"):
        if data.get(key) is None or data[key] in ("", []):
            raise UserError(f"{where}: {key} is required")
    data = {key: value for key, value in data.items() if value is not None or key in ("tuning", "costs")}
    if not re.fullmatch(r"[\w.-]{1,100}(/[\w.-]{1,100})*", data["name"]) or {".", ".."} & set(data["name"].split("/")):
        raise UserError(f"{where}.name={data['name']!r}: letters, digits, '.', '_', '-' and '/' only, at most 100")
    read: dict[str, Any] = dict(data)
    read["arms"] = tuple(_arm(arm, f"{where}.arms[{at}]") for at, arm in enumerate(data["arms"]))
    read["tasks"] = _texts([data["tasks"]] if isinstance(data["tasks"], str) else data["tasks"], f"{where}.tasks")
    read["blocks"] = {
        str(title): _texts(labels, f"{where}.blocks.{title}") for title, labels in (data.get("blocks") or {}).items()
    }
    read["fixed"] = _settings(data.get("fixed") or {}, f"{where}.fixed")
    read["per_task"] = {
        task: _settings(given, f"{where}.per_task.{task}") for task, given in (data.get("per_task") or {}).items()
    }
    read["sensitivity"] = _varied(data.get("sensitivity") or {}, f"{where}.sensitivity")
    for key in ("margin", "alpha", "assumed_sd"):
        if key in data:
            read[key] = _number(data[key], f"{where}.{key}")
    for key in ("validation_items", "test_items"):
        if key in data and (isinstance(data[key], bool) or not isinstance(data[key], int) or data[key] < 1):
            raise UserError(f"{where}.{key}={data[key]}: a whole number from 1 is needed")
    read["tuning"] = _tuning(data.get("tuning", {}), f"{where}.tuning")
    if data.get("estimand") is None:
        read["estimand"] = "method" if read["tuning"] else "rate"
    seeds = data.get("seeds", SEEDS.get(read["estimand"], SEEDS["method"]))
    read["until_decided"] = decided = read_until_decided(seeds, f"{where}.seeds")
    most = min(decided.max, MOST_LOOKS + 1) if decided else 0  # no list is made that `_check` refuses for its length
    read["seeds"] = tuple(range(most)) if decided else read_seeds(seeds, f"{where}.seeds")
    costs = data.get("costs", {})
    read["costs"] = None if costs in (None, False) else _build(Costs, costs, f"{where}.costs")
    spec = StudySpec(**read)
    _check(spec, where)
    return spec


def from_yaml(path: str | Path) -> StudySpec:
    """Read a study from its YAML file; comments may stand on the first lines."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    return from_mapping(data or {}, path.stem)


_LIST, _MAPPING, _TEXT = (list, tuple), (dict,), (str,)
_SHAPES = {
    "name": _TEXT, "model": _TEXT, "reference": _TEXT, "estimand": _TEXT, "metric": _TEXT, "procedure": _TEXT,
    "claim": _TEXT,
    "question": _TEXT,
    "arms": _LIST, "tasks": (*_LIST, *_TEXT), "blocks": _MAPPING, "fixed": _MAPPING,
    "per_task": _MAPPING, "tuning": (*_MAPPING, bool, str), "costs": (*_MAPPING, bool),
}  # fmt: skip


def _shaped(value: Any, kinds: tuple[type, ...], where: str) -> None:
    if value is not None and not isinstance(value, kinds):
        words = {list: "a list", dict: "a mapping", str: "a text"}
        wanted = " or ".join(words[kind] for kind in kinds if kind in words)
        raise UserError(f"{where}={value}: {wanted} is needed")


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """Read a list of names."""
    _shaped(value, _LIST, where)
    if value is None or any(not isinstance(item, str) or not item for item in value):
        raise UserError(f"{where}={value}: a list of names is needed")
    return tuple(value)


def _settings(value: Any, where: str) -> dict[str, Any]:
    """Read overrides of jobs: keys as on the command line, plain values or lists of them."""
    _shaped(value, _MAPPING, where)
    for key, item in (value or {}).items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][\w.@/]*", key):
            raise UserError(f"{where}: {key!r} is no key of the command line")
        if isinstance(item, Mapping):
            raise UserError(
                f"{where}.{key}={dict(item)}: a plain value or a list is needed; write {key}.<field>: <value>"
            )
    return dict(value or {})


def _varied(value: Any, where: str) -> dict[str, tuple[Any, ...]]:
    """Read settings that are varied: each a list of plain values, none of what a study sets itself."""
    read = {}
    for key, values in _settings(value, where).items():
        if key in OWNED:
            raise UserError(f"{where}.{key}: {OWNED[key]}")
        if not isinstance(values, list | tuple) or not values or any(isinstance(one, list | tuple) for one in values):
            raise UserError(f"{where}.{key}={values}: a list of plain values is needed")
        twice = [one for at, one in enumerate(values) if one in values[:at]]
        if twice:
            raise UserError(f"{where}.{key}={list(values)}: {twice[0]} occurs twice")
        read[key] = tuple(values)
    return read


def _arm(data: Any, where: str) -> Arm:
    if data is None:
        raise UserError(f"{where}: an arm needs init")
    _shaped(data, (*_MAPPING, *_TEXT), where)
    if isinstance(data, str):
        data = {"init": data}
    known = {item.name for item in fields(Arm)}
    if "init" not in data:
        raise UserError(f"{where}: an arm needs init")
    # A key that is no field of Arm is an override of its jobs: `rank: 4`, `init.pattern: banded`.
    _shaped(data.get("overrides"), _MAPPING, f"{where}.overrides")
    overrides = _settings(dict(data.get("overrides") or {}) | {k: v for k, v in data.items() if k not in known}, where)
    for key, kind, word in (
        ("init", str, "a method's name"),
        ("label", str, "a text"),
        ("trained", bool, "true or false"),
    ):
        if key in data and (not isinstance(data[key], kind) or data[key] == ""):
            raise UserError(f"{where}.{key}={data[key]}: {word} is needed")
    fields_of_arm = {k: v for k, v in data.items() if k in known and k != "overrides"}
    if fields_of_arm.get("match") is not None:
        match = fields_of_arm["match"] = _build(Match, fields_of_arm["match"], f"{where}.match")
        if (
            not all(isinstance(text, str) and text for text in (match.to, match.key))
            or not 1 <= match.low <= match.high
        ):
            raise UserError(f"{where}.match: to and key are names, and low is at least 1 and at most high")
    if fields_of_arm.get("lr") is not None:
        fields_of_arm["lr"] = _number(fields_of_arm["lr"], f"{where}.lr")
        if not fields_of_arm["lr"] > 0:
            raise UserError(f"{where}.lr={fields_of_arm['lr']:g}: must be above 0")
    settings = (f"{k.split('.')[-1]}={v}" for k, v in overrides.items())
    fields_of_arm.setdefault("label", " ".join([fields_of_arm["init"], *settings]))
    return Arm(**fields_of_arm, overrides=overrides)


def _tuning(data: Any, where: str) -> Tuning | None:
    if data in (None, False, "off"):
        return None
    _shaped(data, _MAPPING, where)
    read = {key: value for key, value in data.items() if value is not None}
    if "seeds" in read:
        read["seeds"] = read_seeds(read["seeds"], f"{where}.seeds")
    halving = read.get("halving")
    read["halving"] = None if halving in (None, False, "off") else _build(Halving, halving, f"{where}.halving")
    return _build(Tuning, read, where)


def _build(kind: type, data: Mapping[str, Any], where: str) -> Any:
    _shaped(data, _MAPPING, where)
    _known(data, kind, where)
    for key in _WHOLE & data.keys():
        if isinstance(data[key], bool) or not isinstance(data[key], int):
            raise UserError(f"{where}.{key}={data[key]}: a whole number is needed")
        if not -(10**6) <= data[key] <= 10**6:
            raise UserError(f"{where}.{key}={data[key]}: must be at most {10**6:,}")
    if "keep" in data:
        data = {**data, "keep": _number(data["keep"], f"{where}.keep")}
        if not 0 < data["keep"] <= 1:
            raise UserError(f"{where}.keep={data['keep']:g}: must be above 0 and at most 1")
    try:
        return kind(**data)
    except TypeError as error:
        raise UserError(f"{where}: {str(error).split('__init__() ')[-1]}") from None


_WHOLE = {"points", "per_decade", "extend", "rounds", "runners_up", "steps", "seed", "low", "high"}


def _known(data: Mapping[str, Any], kind: type, where: str, without: frozenset[str] | set[str] = frozenset()) -> None:
    names = [item.name for item in fields(kind) if item.name not in without]
    for key in data:
        if key not in names:
            raise UserError(f"{where}: no key {key!r}; {near(key, names)}")


def _number(value: Any, where: str) -> float:
    try:
        number = float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}={value}: a number is needed") from None
    if not math.isfinite(number):
        raise UserError(f"{where}={value}: a finite number is needed")
    return number


OWNED = {
    "init": "the arm says which method it is (`arms: [{label: ..., init: ...}]`)",
    "task": "a study lists its tasks under `tasks`",
    "model": "a study names its model under `model`",
    "lr": "rates are tuned, or given by an arm (`arms: [{init: lora, lr: 1e-3}]`)",
    "seed": "a study lists its seeds under `seeds`",
    "evaluate": "tuning looks at validation, final runs at test",
    "base": "an arm `none` scores the frozen base",
    "label": "an arm's label stands beside its `init`",
    "tag": "a study sets it",
    "name": "a study's records carry the study's name",
}
"""What a study sets in every job itself: another setting would be lost, or would make all arms the same run."""


def _check(spec: StudySpec, where: str) -> None:
    labels = list(spec.labels)
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise UserError(f"{where}.arms: label {twice[0]!r} occurs twice")
    named = [("reference", spec.reference)]
    named += [(f"blocks.{title}", label) for title, block in spec.blocks.items() for label in block]
    named += [(f"arms.{arm.label}.match.to", arm.match.to) for arm in spec.arms if arm.match]
    for place, label in named:
        if label not in labels:
            raise UserError(f"{where}.{place}: no arm {label!r}; {near(label, labels)}")
    for task in spec.per_task:
        if task not in spec.tasks:
            raise UserError(f"{where}.per_task: no task {task!r}; {near(task, spec.tasks)}")
    for arm in spec.arms:
        if arm.match and spec.arm(arm.match.to).match:
            line = f"{arm.match.to}: that arm is matched itself; name its target"
            raise UserError(f"{where}.arms.{arm.label}.match.to={line}")
    settings = {"fixed": spec.fixed, **{f"per_task.{task}": given for task, given in spec.per_task.items()}}
    owned = OWNED | {"results_dir": "where a study's records lie is said on the command line"}
    for place, given in (settings | {f"arms.{arm.label}": arm.overrides for arm in spec.arms}).items():
        for key in given:
            if key in owned:
                raise UserError(f"{where}.{place}.{key}: {owned[key]}")
    if not 0 < spec.margin < 1:
        raise UserError(f"{where}.margin={spec.margin:g}: a fraction between 0 and 1 (0.01 is one point)")
    if not 0 < spec.alpha < 0.5:
        raise UserError(f"{where}.alpha={spec.alpha:g}: must be between 0 and 0.5")
    if not 0 < spec.assumed_sd <= 1:
        raise UserError(f"{where}.assumed_sd={spec.assumed_sd:g}: must be above 0 and at most 1")
    if len(set(spec.tasks)) < len(spec.tasks):
        raise UserError(f"{where}.tasks={list(spec.tasks)}: a task occurs twice")
    if spec.metric not in METRICS:
        raise UserError(f"{where}.metric={spec.metric}: {near(spec.metric, METRICS)}")
    if spec.procedure not in PROCEDURES:
        raise UserError(f"{where}.procedure={spec.procedure}: {near(spec.procedure, PROCEDURES)}")
    if spec.estimand not in ESTIMANDS:
        raise UserError(f"{where}.estimand={spec.estimand}: {near(spec.estimand, ESTIMANDS)}")
    if spec.claim not in CLAIMS:
        raise UserError(f"{where}.claim={spec.claim}: {near(spec.claim, CLAIMS)}")
    if spec.estimand == "method" and spec.tuning is None:
        raise UserError(f"{where}.estimand=method: rates are searched, so tuning is needed; with tuning: false, rate")
    if spec.estimand == "method" and spec.tuning and spec.tuning.runners_up:
        raise UserError(
            f"{where}.tuning.runners_up={spec.tuning.runners_up}: for estimand: rate; estimand: method runs the rates "
            "beside the best anyway"
        )
    if spec.until_decided is not None:
        check_until_decided(spec, spec.until_decided, f"{where}.seeds.until_decided")
    if spec.tuning is not None:
        _check_tuning(spec, spec.tuning, f"{where}.tuning")


def _check_tuning(spec: StudySpec, tuning: Tuning, where: str) -> None:
    if tuning.points < LEAST_POINTS:
        raise UserError(f"{where}.points={tuning.points}: at least {LEAST_POINTS} learning rates")
    if tuning.points > MOST_POINTS or tuning.per_decade > MOST_PER_DECADE or max(tuning.extend, tuning.rounds) > 100:
        raise UserError(
            f"{where}: at most {MOST_POINTS} points, {MOST_PER_DECADE} a decade, and 100 for extend and rounds"
        )
    if tuning.runners_up < 0:
        raise UserError(f"{where}.runners_up={tuning.runners_up}: must be at least 0")
    if tuning.per_decade < 1 or tuning.extend < 0 or tuning.rounds < 0:
        raise UserError(f"{where}: per_decade is at least 1, extend and rounds at least 0")
    if len(tuning.seeds) < LEAST_TUNING_SEEDS:
        raise UserError(f"{where}.seeds={list(tuning.seeds)}: at least {LEAST_TUNING_SEEDS} tuning seeds")
    shared = sorted(set(tuning.seeds) & set(spec.seeds))
    if shared:
        raise UserError(f"{where}.seeds: {shared[0]} is a final seed too; tuning and final seeds must differ")
    steps = spec.fixed.get("steps")
    if tuning.halving and tuning.halving.steps < 1:
        raise UserError(f"{where}.halving.steps={tuning.halving.steps}: must be at least 1")
    if tuning.halving and (not isinstance(steps, int) or tuning.halving.steps >= steps):
        raise UserError(f"{where}.halving.steps={tuning.halving.steps}: must be below fixed.steps={steps}")
    if spec.costs and (spec.costs.steps < 1 or spec.costs.seed < 0):
        raise UserError("study.costs: steps is at least 1, seed at least 0")
    if spec.costs and spec.costs.seed in (*tuning.seeds, *spec.seeds):
        raise UserError(f"{where}: costs.seed={spec.costs.seed} is a tuning or final seed; choose another")
