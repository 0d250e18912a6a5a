"""Hydra's and OmegaConf's errors as the one line that a user of lorax reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields

from lorax.config import Schema, Train, conf_dir
from lorax.errors import UserError, near

KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def explain(error: BaseException) -> str:
    """Return one line for an error of composition: the value, the place, the near misses."""
    text = str(error).strip()
    cause = str(error.__cause__ or "")
    for pattern, line in _RULES:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            return line(match, cause)
    return _first(text)


def keys() -> list[str]:
    """Return every key that the command line accepts, nested ones with their dots."""
    return [item.name for item in fields(Schema)] + [f"train.{item.name}" for item in fields(Train)]


def options(group: str) -> list[str]:
    """Return the options of a configuration group, from its folder."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _missing(match: re.Match[str], cause: str) -> str:
    group, _, name = match["path"].rpartition("/")
    if not group:
        return f"no configuration {name!r} in {conf_dir()}"
    listed = re.findall(r"^\t(\S+)$", match.string, re.MULTILINE) or options(group)
    return f"{group}={name}: {near(name, listed)}" if listed else f"{group}={name}: there is no such group"


def _unknown(match: re.Match[str], cause: str) -> str:
    key = match["key"]
    group = key.partition(".")[0]
    if "." in key and group in ("init", "task", "model"):
        return f"{key}: the chosen {group} has no such field; see conf/{group}"
    return f"{key}: no such key; {near(key, keys())}"


def _merge(match: re.Match[str], cause: str) -> str:
    key, _, value = match["override"].strip().partition("=")
    found = re.search(r"could not be converted to (\w+)", match.string + cause)
    if found:
        return f"{key}={value}: must be {KINDS.get(found[1], found[1])}"
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", match.string + cause)
    if unknown:
        return _unknown(re.match(r"(?P<key>.*)", key), cause)
    return f"{key}={value}: {_first(cause or match.string.split(chr(10), 1)[-1])}"


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "the configuration cannot be composed"


_RULES: list[tuple[str, Callable[[re.Match[str], str], str]]] = [
    (r"Could not (?:find|load) '(?P<path>[^']+)'", _missing),
    (r"Error merging override (?P<override>[^\n]+)", _merge),
    (r"Could not override '(?P<key>[^'@]+)[^']*'", _unknown),
    (r"Could not append to config\. An item is already at '(?P<key>[^']+)'",
     lambda match, cause: f"+{match['key']}: exists already; leave out the +"),
]  # fmt: skip


def one_line(error: BaseException) -> str:
    """Return an exception as a single line, its kind first unless it is meant for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:400]}"


def is_composition_error(error: BaseException) -> bool:
    """Tell whether an exception comes from composing or parsing the configuration."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException)

