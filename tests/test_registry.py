"""The registry behind methods, tasks and models: a file in the package is enough."""

import sys

import pytest

from lorax.errors import UserError
from lorax.registry import Registry

MODULE = """
from dataclasses import dataclass
from registry_for_test import families

@families.register("{name}")
@dataclass(frozen=True, kw_only=True)
class Made:
    name: str
    size: int = 1
"""


@pytest.fixture
def families(tmp_path, monkeypatch):
    """A registry of a package with the modules one, two (whose class is called `second`) and _helper."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "made_families"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "one.py").write_text(MODULE.format(name="one"))
    (folder / "two.py").write_text(MODULE.format(name="second"))
    (folder / "_helper.py").write_text("raise RuntimeError('not to be imported')")
    registry = Registry("family", "made_families")
    monkeypatch.setitem(sys.modules, "registry_for_test", type("Module", (), {"families": registry}))
    yield registry
    for name in [name for name in sys.modules if name.startswith("made_families")]:
        del sys.modules[name]


def test_a_class_is_found_by_its_module_or_by_a_look_through_the_folder(families):
    assert families.build({"name": "one", "size": 3}).size == 3
    assert "made_families.two" not in sys.modules, "the module of that name is enough"
    assert families.build({"name": "mine", "family": "second"}).name == "mine"
    assert families.names() == ["one", "second"]


@pytest.mark.parametrize(
    "spec, line",
    [({"name": "secnd"}, "family=secnd is unknown: did you mean 'second'"),
     ({"name": "no such/name"}, "family=no such/name is unknown"),
     ({}, "family=None: must be the name of one"),
     ({"name": "one", "sise": 2}, "family.sise=2: one has no such field; did you mean 'size'")],
)  # fmt: skip
def test_what_is_unknown_is_one_line_with_the_near_misses(families, spec, line):
    with pytest.raises(UserError, match=line) as caught:
        families.build(spec)
    assert "\n" not in str(caught.value)


def test_a_name_is_given_once(families):
    families.names()
    with pytest.raises(UserError, match="family=one is taken by made_families.one.Made"):
        families.register("one")(type("Other", (), {}))


def test_another_package_brings_classes_by_entry_point(families, tmp_path):
    (tmp_path / "other_package.py").write_text(MODULE.format(name="third"))
    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[made.families]\nthird = other_package\nbroken = no_such_module\n")
    families.entry_points = "made.families"
    with pytest.warns(UserWarning, match="family=broken .no_such_module. cannot be loaded: No module named"):
        assert families.names() == ["one", "second", "third"]
    assert families.build({"name": "third"}).size == 1
