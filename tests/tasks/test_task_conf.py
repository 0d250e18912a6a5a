"""Every YAML of tasks and models is composed and accepted by its registry."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lorax.config import conf_dir, register_schema
from lorax.errors import UserError
from lorax.models import registry as models
from lorax.tasks import registry as tasks

REGISTRIES = {"task": tasks, "model": models}
FILES = [(group, path.stem) for group in REGISTRIES for path in sorted(Path(conf_dir(), group).glob("*.yaml"))]


def composed(group, name):
    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return OmegaConf.to_container(compose("config", [f"{group}={name}"])[group], resolve=True)


@pytest.mark.parametrize("group, name", FILES)
def test_yaml_is_named_accepted_and_says_its_command(group, name):
    assert (Path(conf_dir()) / group / f"{name}.yaml").read_text().startswith("# python -m lorax.run ")
    spec = composed(group, name)
    assert spec["name"] == name
    if "path" in spec and spec["path"] is None:
        with pytest.raises(UserError, match=rf"{group}.path=<"):
            REGISTRIES[group].build(spec)
    else:
        REGISTRIES[group].build(spec)


@pytest.mark.parametrize("name", [name for group, name in FILES if group == "task"])
def test_procedural_tasks_draw_what_they_promise(name):
    spec = composed("task", name)
    if "path" in spec or "parts" in spec or name == "reasoning_gym":  # a family has to be told what of
        return
    task = tasks.load(spec, 0)
    assert task.name == name and len(task.train) == spec["n_train"]
    assert len(task.test) == spec["n_test"] >= 64
    assert task.steps <= 150
