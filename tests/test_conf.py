"""Every YAML composes, every method and task has one, and bad input is one line with exit code 2."""

import subprocess
import sys
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from lorax.config import RunConfig, conf_dir, register_schema, resolve
from lorax.errors import UserError

CONF = conf_dir()
GROUPS = ("init", "task", "model", "experiment", "debug", "study")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
"""The recipes of papers, in a folder of their own, are composed in test_papers.py."""


def composed(*overrides):
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def words_for(group, option):
    given = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    path = [f"{group}.path=somewhere"] if "path" in given and given["path"] is None else []
    return [f"+{group}={option}" if group == "study" else f"{group}={option}", *path]


def several_at_once():
    """Every option, those that do not touch one another in one composition."""
    of = {group: [(group, option) for its, option in OPTIONS if its == group] for group in GROUPS}
    yield from zip_longest(of["init"], of["task"], of["model"])
    yield from ((one,) for group in ("experiment", "debug", "study") for one in of[group])


@pytest.mark.parametrize(
    "chosen",
    [[one for one in some if one] for some in several_at_once()],
    ids=lambda some: "+".join(o for _, o in some),
)
def test_every_yaml_composes_and_resolves(chosen):
    resolve(composed(*(word for group, option in chosen for word in words_for(group, option))))


@pytest.mark.slow
@pytest.mark.parametrize("group, option", OPTIONS, ids=lambda value: value)
def test_every_yaml_composes_and_resolves_alone(group, option):
    resolve(composed(*words_for(group, option)))


def test_the_yaml_of_all_keys_says_the_defaults_of_a_run():
    """config.yaml is what a user reads, `RunConfig` what a caller gets: they may not differ."""
    listed = yaml.safe_load((CONF / "config.yaml").read_text())
    defaults = {item.name: item.default for item in fields(RunConfig)}
    for key in listed.keys() - {"defaults", "hydra"}:
        assert listed[key] == defaults[key], key


def test_every_method_has_a_yaml_and_every_yaml_a_method():
    from lorax.initializers.registry import names

    assert sorted(path.stem for path in (CONF / "init").glob("*.yaml")) == sorted(names())


def test_every_yaml_says_its_command():
    for group in ("init", "task", "model", "experiment", "study", "debug"):
        for path in (CONF / group).glob("*.yaml"):
            assert "python -m lorax.run" in path.read_text(), path


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["rank=-1"], ["rank=-1", "at least 1"]),
        (["lr=nan"], ["lr=nan", "finite"]),
        (["steps=0"], ["steps=0", "at least 1"]),
        (["zeta=4", "gamma=16", "init=lora_ga"], ["zeta=4", "gamma=16", "not both"]),
        (["scaling=rslor"], ["rslor", "rslora"]),
        (["recenter=caryr"], ["carry"]),
        (["dropout=1"], ["dropout", "below 1"]),
        (["device=gpu"], ["gpu", "cuda"]),
        (["name=../x"], ["name"]),
        (["batch_size=6", "train.accumulation=4"], ["batch_size=6", "4"]),
        (["init=lora_ga", "+init.directon=ArBr"], ["directon", "direction"]),
    ],
)
def test_values_out_of_bounds_are_named(overrides, parts):
    with pytest.raises(UserError) as caught:
        resolve(composed(*overrides))
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, parts",
    [
        (["rank=abc"], ["rank=abc", "whole number"]),
        (["init=loraga"], ["init=loraga", "'lora_ga'"]),
        (["task=chainsum"], ["chainsum", "chain_sum"]),
        (["-m", "init=lora,loraga", "rank=4"], ["loraga", "'lora_ga'"]),
        (["-m", "rank=4,-1"], ["rank=-1", "at least 1"]),
        (["init.patern=banded", "init=svft"], ["patern"]),
        (["rank=8", "rank"], ["rank"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(lorax, capsys, words, parts):
    assert lorax(*words, small=False) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "words, parts",
    [
        (["rnk=8"], ["rnk", "'rank'"]),
        pytest.param(["-m", "rank=4,-1"], ["rank=-1", "at least 1"], marks=pytest.mark.slow),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_in_a_process_of_its_own(words, parts, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lorax.run", *words, f"results_dir={tmp_path}/results"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and all(part in lines[0] for part in parts), done.stderr
    assert not list(Path(tmp_path).iterdir())
