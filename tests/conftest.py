"""The command line in this process, on the toy model; fixtures of made-up studies and of small trainings."""

import sys

import pytest
from hydra._internal.hydra import Hydra

from lorax.run import main

pytest_plugins = ["made_study", "small_training"]
SMALL = ["model=toy", "task=toy", "steps=4", "track=none", "dtype=float32", "task.n_test=20", "name=small"]


LONG = ("test_study.py", "test_robust.py", "test_run.py")


def pytest_collection_modifyitems(items):
    """The long ones first: with two workers, none is left alone with one at the end."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def _mode(hydra, config_name, overrides, composed=Hydra.get_mode):
    """Hydra composes a configuration once more, 0.1 s, to read `hydra.mode`; only a word or a folder could set it."""
    can_be_set = any("hydra.mode" in word or word.startswith(("-c", "--c", "--exp")) for word in sys.argv)
    return composed(hydra, config_name, overrides) if can_be_set else None


@pytest.fixture
def lorax(monkeypatch, tmp_path_factory, tmp_path):
    """Run the command line in this process; return its exit code. `small=False`: nothing but `words`."""
    monkeypatch.setattr(Hydra, "get_mode", _mode)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAX_CACHE", str(tmp_path_factory.mktemp("cache")))

    def run(*words, results="results", small=True):
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        base = SMALL if small else []
        monkeypatch.setattr(sys, "argv", ["lorax", *base, *words, f"results_dir={results}"])
        try:
            main()
        except SystemExit as stop:
            return stop.code
        return 0

    return run


@pytest.fixture
def scratch_methods(monkeypatch):
    """Initialisers that a test registers go with it."""
    from lorax.initializers import registry

    registry.names()  # the package's own are there before
    monkeypatch.setattr(registry._methods, "_classes", dict(registry._methods._classes))
