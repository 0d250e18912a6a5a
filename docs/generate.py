"""Pages made from the code: every key, every method, every task and model. Written anew at each build."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

from lorax.config import conf_dir
from lorax.initializers.registry import get, names
from lorax.running import methods

KEY = re.compile(r"^(\w+): (.*?)\s*# (.*)$")


def write(folder: Path) -> None:
    """Write all generated pages into a folder of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "methods").mkdir(parents=True)
    (folder / "keys.md").write_text(keys())
    (folder / "methods_table.md").write_text(_without_title(methods.page()))
    for name in names():
        (folder / "methods" / f"{name}.md").write_text(method(name))
    for group in ("task", "model", "study"):
        (folder / f"{group}_files.md").write_text(files(group))


def keys() -> str:
    """Return a table of the keys of `conf/config.yaml`: key, default, meaning."""
    rows = [KEY.match(line) for line in (conf_dir() / "config.yaml").read_text().splitlines()]
    lines = [f"| `{row[1]}` | `{row[2]}` | {_cell(row[3])} |" for row in rows if row]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines, ""])


def method(name: str) -> str:
    """Return the page of a method: its equation, what it says of itself, its options, its values in the table."""
    text = inspect.getdoc(get(name)) or ""
    first, _, rest = text.partition("\n")
    path = conf_dir() / "init" / f"{name}.yaml"
    options = f"## Options\n\n```yaml\n{path.read_text()}```\n" if path.is_file() else ""
    return f"# {name}\n\n> {_prose(first)}\n\n{_prose(rest.strip())}\n\n{options}"


def files(group: str) -> str:
    """Return every YAML of a group of `conf/`, by name, with the command that it begins with."""
    parts = []
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        parts.append(f"### {path.stem}\n\n```yaml\n{path.read_text().rstrip()}\n```\n")
    return "\n".join(parts)


def _prose(text: str) -> str:
    """Return a docstring as Markdown: what stands between stars or underscores in an equation stays as it is."""
    kept = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<|\[\]])", r"\\\1", part) for part in kept)


def _cell(text: str) -> str:
    return re.sub(r"([*_<|\[\]])", r"\\\1", text)


def _without_title(page: str) -> str:
    return page.partition("\n\n")[2]
