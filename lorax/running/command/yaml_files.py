"""YAML files that a user brings: read without running or unfolding anything, and refused in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lorax.errors import UserError, one_line

MOST_VALUES = 100_000
"""Values that a file may stand for once its anchors are unfolded; a study has some hundred."""

MOST_CHARACTERS, MOST_OPEN = 200_000, 200
"""Of a file, and brackets in it that are open at once."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; a key that stands twice in a mapping is refused, as Hydra does."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: set[Any] = set()
    for key, _ in node.value:
        name = loader.construct_object(key, deep=True)  # type: ignore[no-untyped-call]
        if isinstance(name, list | dict):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a text or a number", key.start_mark)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {name!r}", key.start_mark)
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        UserError: the file cannot be read, is no YAML, holds something else than a mapping, or is deeper or larger
            than any configuration; one line with file, line and column.
    """
    try:
        text = _text(path)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()  # type: ignore[no-untyped-call]
            _check_size(node, path)
            data = {} if node is None else loader.construct_document(node)  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{path}: {_reason(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds {_kind(data)}; a mapping is needed, `key: value` on each line")
    return data


def refuse_unfolding(folder: str | Path) -> None:
    """Refuse a folder of YAML files in which an anchor holds itself, or a few lines stand for very many values.

    Hydra reads such a file until time or memory end. Files that cannot be read at all are left to the reader.
    """
    for path in sorted(Path(folder).rglob("*.y*ml")):
        try:
            _check_size(yaml.compose(_text(path), Loader=yaml.SafeLoader), path)
        except UserError:
            raise
        except (OSError, yaml.YAMLError, ValueError, RecursionError):
            continue


def first_unreadable(folders: Iterable[str | Path]) -> str | None:
    """Return the line for the first YAML file below some folders that cannot be read; None if all can."""
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.yaml")):
            try:
                read_mapping(path)
            except UserError as error:
                return one_line(error)
    return None


def _text(path: str | Path) -> str:
    """Return a file's text; its size and its open brackets are bounded, since a parser's time grows with both."""
    text = Path(path).read_text(encoding="utf-8")
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{path}: {len(text):,} characters; a configuration has at most {MOST_CHARACTERS:,}")
    depth = 0
    for sign in re.findall(r"[\[\]{}]", text):
        depth += 1 if sign in "[{" else -1
        if depth > MOST_OPEN:
            raise UserError(f"{path}: nested too deeply")
    return text


def _check_size(root: yaml.Node | None, path: str | Path) -> None:
    """Count the values of a document with every anchor unfolded; walk it without recursion."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [] if root is None else [(root, False)]
    while stack:
        node, done = stack.pop()
        children = _children(node)
        if done:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)
            if sizes[id(node)] > MOST_VALUES:
                line = node.start_mark.line + 1
                raise UserError(f"{path}, line {line}: stands for more than {MOST_VALUES:,} values through its anchors")
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            for child in children:
                if id(child) in open_nodes:
                    raise UserError(f"{path}, line {child.start_mark.line + 1}: an anchor holds itself")
                stack.append((child, False))


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = str(error.problem or error.context)
        if "could not determine a constructor" in problem:
            problem = f"the tag {problem.split()[-1]} is not read; write plain values"
        return place + problem.replace("\t", "\\t").replace("'\\\\t'", "a tab")
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} cannot stand in YAML (#x{error.character:04x})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"no UTF-8 text (byte {error.start + 1})"
    return getattr(error, "strerror", None) or str(error)


def _kind(data: Any) -> str:
    return {list: "a list", str: "a text", set: "a set"}.get(type(data), f"the value {data!r}")
