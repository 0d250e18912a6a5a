"""Imports go one way, and what needs no torch loads none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = "errors records adapters probing initializers api models tasks training diagnostics config running run".split()
ANYWHERE = {"errors", "records"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("lorax."))


@pytest.mark.parametrize("path", sorted((ROOT / "lorax").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = path.relative_to(ROOT / "lorax").parts[0].removesuffix(".py")
    used = set(imports(path)) - {here}
    if here in ("studies", "tables"):
        # rescoring applies the tasks' extractors, which are plain text functions
        assert used <= ANYWHERE | {"studies", "tables", "tasks"}
    elif here in ORDER:
        above = set(ORDER[ORDER.index(here) + 1 :])
        assert not used & above, f"{here} imports {used & above}"


@pytest.mark.parametrize(
    "module", ["lorax", "lorax.run", "lorax.config", "lorax.records", "lorax.tables", "lorax.studies.calibrate",
               "lorax.initializers.base", "lorax.tasks.extractors", "lorax.tasks.registry", "lorax.running.sweep",
               "hydra_plugins.lorax.sweeper", "hydra_plugins.lorax.launcher"],
)  # fmt: skip
def test_needs_no_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
