"""Another distribution's initialiser: installed from a folder, it is a method like any other."""

import os
import subprocess
import sys

import pytest

METHOD = '''
from dataclasses import dataclass, replace

import lorax
from lorax.initializers.lora import LoRA


@lorax.register("halved")
@dataclass(frozen=True, kw_only=True)
class Halved(LoRA):
    """LoRA with half the A."""

    share: float = 0.5

    def __call__(self, probe):
        factors = super().__call__(probe)
        return replace(factors, A=self.share * factors.A)
'''
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "lorax-halved"
version = "1.0"
[project.entry-points."lorax.initializers"]
halved = "lorax_halved"
broken = "lorax_halved_is_not_there"
[tool.hatch.build.targets.wheel]
include = ["lorax_halved.py"]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process in which the package is installed."""
    folder, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "lorax_halved.py").write_text(METHOD)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, str(folder)], check=True, capture_output=True)
    paths = [str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.mark.slow
def test_it_is_listed_attached_and_run_by_name_alone(installed, tmp_path):
    code = """
import lorax, torch
from torch import nn
assert "halved" in lorax.names()
adapters = lorax.attach(nn.Sequential(nn.Linear(8, 6)), "halved", rank=2, share=0.25)
plain = lorax.attach(nn.Sequential(nn.Linear(8, 6)), "lora", rank=2)
assert torch.equal(adapters.factors()["0"].A, 0.25 * plain.factors()["0"].A)
"""
    done = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "init=broken (lorax_halved_is_not_there) cannot be loaded: No module named" in done.stderr
    words = "init=halved init.share=0.75 rank=2 model=toy task=toy steps=2 track=none base=false cache=off".split()
    command = [sys.executable, "-m", "lorax.run", *words, f"results_dir={tmp_path}"]
    done = subprocess.run(command, env=installed, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [record] = [path.read_text() for path in tmp_path.glob("records/*/*.json") if "items" not in path.name]
    assert '"name": "halved"' in record and '"share": 0.75' in record


def test_an_unknown_name_lists_it_as_a_near_miss(installed, tmp_path):
    command = [sys.executable, "-m", "lorax.run", "init=halve", "model=toy", "task=toy"]
    done = subprocess.run(command, env=installed, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "init=halve: did you mean 'halved'" in done.stderr
