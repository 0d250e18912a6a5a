"""How a group of tasks is written, and what is refused in one line before anything starts."""

import re
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lorax.config import conf_dir, register_schema, resolve
from lorax.errors import UserError
from lorax.running.command.task_parts import with_parts
from lorax.running.messages import explain
from lorax.running.packing import pack_key
from lorax.running.preflight import preflight
from lorax.running.prepared import prepare
from lorax.tasks.group import TaskGroup


@pytest.fixture(scope="module")
def composed():
    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield lambda *words: compose("config", with_parts(words))


def test_parts_are_tasks_that_hydra_composes():
    assert with_parts(["a=1", "task.parts=[x,y]"]) == ["a=1", "+task@task.parts.x=x", "+task@task.parts.y=y"]
    assert with_parts(["task.parts={mine: jsonl, yours: jsonl}"]) == [
        "+task@task.parts.mine=jsonl", "+task@task.parts.yours=jsonl",
    ]  # fmt: skip
    assert with_parts(["task.parts=[x],[y]", "task.parts.x.path=1"]) == ["task.parts=[x],[y]", "task.parts.x.path=1"]


@pytest.fixture(scope="module")
def given(composed):
    """A group of one task, as Hydra hands it over: composed once, since that takes longer than all checks."""
    whole = composed("model=toy", "dtype=float32", "results_dir=/tmp", "task=group", "task.parts=[toy]")
    return lambda: OmegaConf.to_container(whole, resolve=True)


def refusal(make):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of Hydra too
        preflight([resolve(make())])
    line = explain(caught.value)
    assert "\n" not in line and len(line) <= 300
    return line


@pytest.mark.parametrize(
    "words, line",
    [
        (["task.parts=[toi]"], "task=toi: did you mean 'toy'"),
        (["task.parts=[toy,toy]"], "task.parts: toy stands twice; give each a name"),
        (["task.parts=3"], "task.parts=3: names of tasks are needed"),
        (["task.parts=[]"], "names of tasks are needed"),
        (["task=toy", "task.parts=[toy]"], "task.parts: task=toy is one task"),
    ],
)
def test_words_that_name_no_group_are_one_line(composed, words, line):
    assert re.search(line, refusal(lambda: composed("task=group", *words)))


TOY = {"name": "toy"}


@pytest.mark.parametrize(
    "change, line",
    [
        ({"task": TOY, "share": "A"}, "share=A: one task shares nothing"),
        ({"share": "a"}, "share=a: did you mean 'A'"),
        ({"task": {"parts": {"toy": TOY | {"letters": 99}}}}, "task.parts.toy.letters=99: must be between"),
        ({"task": {"parts": {"toy": TOY | {"leters": 3}}}}, "task.parts.toy.leters=3: .*'letters'"),
        ({"task": {"parts": {"toy": {"letters": 3}}}}, "task.parts.toy: the fields of a task are needed"),
        ({"task": {"parts": {"toy": TOY | {"name": "toi"}}}}, "task.parts.toy: task=toi is unknown: did you"),
        ({"task": {"weights": [1, 2]}}, "a list of 1 numbers is needed"),
        ({"task": {"weights": [0]}}, "task.weights=.0.: 0 is no finite number above 0"),
        ({"task": {"steps": 0}}, "task.steps=0: group takes an integer of at least 1"),
        ({"init": {"name": "full"}}, "init=full writes to the base, which the tasks"),
        ({"init": {"name": "head"}}, "init=head writes"),
        ({"recenter": "fold"}, "recenter=fold writes"),
        ({"modules_to_save": ["model.norm"]}, "modules_to_save="),
        ({"diagnostics": True}, "diagnostics=true looks at one task's adapter"),
        ({"init": {"name": "adalora"}, "share": "A"}, "share=A: init=adalora acts on each task's"),
        ({"task": {"parts": {}}}, "task=group: no task is named"),
        ({"task": {"parts": {"a": TOY, "b": TOY | {"kind": "classification"}}}}, "one kind .* not a generation, b cl"),
        ({"task": TOY, "init": {"name": "mtl_lora"}}, "init=mtl_lora: its A and B are what several tasks share; "),
        ({"batch_size": 600}, "batch_size=600: task=toy has 512 training examples"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(given, change, line):
    def made():
        data = given()
        task = change.get("task", {})
        data |= change | {"task": task if task.get("name") else data["task"] | task}
        return data

    assert re.search(line, refusal(made))


def test_what_a_group_is_enters_its_id_and_no_other_run_s(given):
    two = {"a": TOY, "b": TOY | {"letters": 3}}

    def config(parts=two, init="lora", share="none", **task):
        data = given()
        return resolve(data | {"init": {"name": init}, "share": share, "task": data["task"] | {"parts": parts} | task})

    plain = prepare(resolve(given() | {"task": TOY}))
    assert "share" not in plain.identity and "parts" not in plain.identity["task"]
    other = config(parts=two | {"b": TOY | {"letters": 2}})
    variants = [config(), config(share="A"), config(share="common"), config(weights=[1, 2]), other]
    assert len({prepare(each).run_id for each in variants}) == len(variants)
    assert prepare(config(weights=[2, 2])).run_id == prepare(config()).run_id
    assert prepare(config(init="mtl_lora")).run_id == prepare(config(init="mtl_lora", share="A")).run_id
    bases = {prepare(each).frozen_base().run_id for each in variants[:4]}
    assert len(bases) == 1, "the untouched model is scored once, whatever the tasks would share"
    assert pack_key(config()) != pack_key(replace(config(), seed=1)), "a run over several tasks is a pack of its own"


def test_a_group_takes_its_defaults_from_its_tasks():
    toy = {"name": "toy", "n_train": 20, "n_validation": 4, "n_test": 4, "n_heldout": 0}
    group = TaskGroup(parts={"a": toy, "b": toy | {"steps": 90, "batch_size": 4, "lr": 1e-3}}, weights=[1, 3]).load(0)
    assert (group.name, group.steps, group.batch_size, group.lr) == ("a+b", 90, 4, 1e-3)
    assert group.weights == (0.25, 0.75) and [len(part.test) for part in group.parts] == [4, 4] and len(group.test) == 8
    assert [example.meta["task"] for example in group.test] == 4 * ["a"] + 4 * ["b"]
    other = TaskGroup(parts={"a": toy, "b": toy | {"letters": 3}}).load(0)
    assert group.digest != other.digest and group.asked("test") != other.asked("test")
    with pytest.raises(UserError, match="a group holds single tasks"):
        TaskGroup(parts={"a": {"name": "group", "parts": {}}})


def test_mixtures_and_studies_are_about_single_tasks(given):
    from types import SimpleNamespace

    from lorax.mix.command import _composed
    from lorax.running.study import _JobFacts

    with pytest.raises(UserError, match="study: task=group is a group of tasks"):
        _JobFacts(SimpleNamespace(compose=lambda words: given()), []).config([])
    with pytest.raises(UserError, match="task=group: a mixture is searched on one task"):
        _composed(["model=toy", "task=group", "task.parts=[toy]"])
