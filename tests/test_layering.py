"""Imports go one way, rooms stay small, and what needs no torch loads none."""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = """
    errors registry records stats tasks studies reports calibration tables
    exports architecture adapters loading probing initializers api models forward training evaluation diagnostics config
    running run mix push cli
""".split()
"""A room may import those before it; up to `tables` nothing loads torch."""
LIGHT = ORDER[: ORDER.index("tables") + 1]


def files():
    """{module: its path} of the package."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "lorax").rglob("*.py")}
    return {module.removesuffix(".__init__"): path for module, path in paths.items()}


def imports(path, known):
    """The modules of the package that a file imports, inside functions too, but not for type checkers alone."""
    tree = ast.parse(path.read_text())
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    typing = {id(node) for test in tests for node in ast.walk(test)}
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(module):
    return module.split(".")[1] if "." in module else ""


@cache
def edges():
    known = files()
    return {a: {b for b in imports(path, known) if b in known and b != a} for a, path in known.items()}


def test_rooms_import_in_one_order():
    rooms = {room(module) for module in files()} - {""}
    assert rooms == set(ORDER)
    upward = [
        f"{a} imports {b}"
        for a, targets in edges().items()
        for b in targets
        if room(a) and room(b) and ORDER.index(room(b)) > ORDER.index(room(a))
    ]
    assert not upward, "\n".join(upward)


def test_no_circle_of_files():
    try:
        list(TopologicalSorter(edges()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_are_small():
    lines, folder = Counter(), Counter()
    for module, path in files().items():
        lines[room(module)] += path.read_text().count("\n")
        folder[path.parent] += 1
    folder.pop(ROOT / "lorax" / "initializers")  # one file a method is its point
    assert max(lines.values()) <= 0.2 * sum(lines.values()), lines.most_common(1)
    assert max(folder.values()) <= 20, folder.most_common(1)


def loads(code):
    """Run code in a new process; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


HEAVY = "[name for name in ('torch', 'transformers') if name in sys.modules]"


def test_what_reads_and_judges_records_needs_no_torch():
    light = sorted(m for m in files() if room(m) in LIGHT and not m.endswith("__main__"))
    code = "import importlib, sys\n"
    code += f"for name in {light}:\n    importlib.import_module(name)\n    if {HEAVY}: print(name); break"
    assert loads(code) == []


@pytest.mark.parametrize(
    "module", ["lorax", "lorax.run", "lorax.config", "lorax.initializers.base", "lorax.models.registry",
               "lorax.running.sweep", "lorax.calibration.__main__",
               "hydra_plugins.lorax.sweeper", "hydra_plugins.lorax.launcher"],
)  # fmt: skip
def test_needs_no_torch(module):
    assert loads(f"import {module}, sys; print(*{HEAVY})") == []
