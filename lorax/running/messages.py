"""Hydra's and OmegaConf's errors as the one line that a user of lorax reads."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from lorax.config import NESTED, Schema, conf_dir, methods_without_yaml
from lorax.errors import LONGEST, UserError, near, one_line
from lorax.running.command.option_fields import GROUPS, fields_of
from lorax.running.command.words import config_folders
from lorax.running.command.yaml_files import first_unreadable

_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def explain(error: BaseException) -> str:
    """Return any error as one line: ours as it stands, Hydra's in our words, another with its kind and how to see more.

    Hydra's errors, and those of YAML files that it read, stand in the chain of causes; one of ours may lie below
    them, where Hydra called what raised it (a launcher).
    """
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return one_line(cause)
    for cause in _causes(error):
        if is_composition_error(cause):
            return one_line(UserError(composition_message(cause)))
    unreadable = first_unreadable(config_folders(sys.argv[1:]))
    if unreadable is not None:
        return unreadable
    return one_line(error) if isinstance(error, OSError) else unexpected(error)


def unexpected(error: BaseException) -> str:
    """Return an error that nobody has worded as one line with its kind, and with the way to its traceback."""
    return f"{one_line(error)[: LONGEST - 40]} (LORAX_TRACEBACK=1 shows where)"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def composition_message(error: BaseException) -> str:
    """Return one line for an error of composition: the value, the place, the near misses."""
    text = str(error).strip()
    if (word := getattr(error, "override", None)) is not None:
        return _unreadable(word)
    cause = str(error.__cause__ or "")
    for pattern, line in _RULES:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            return line(match, cause)
    told, _, rest = text.partition("\n    full_key:")  # OmegaConf's: what is wrong, then where
    if rest:
        return f"{rest.strip().splitlines()[0]}: {told}" if rest.strip() else told
    if "HYDRA_FULL_ERROR" in text:
        return (
            f"{text.partition(', set env var')[0]}: {cause.splitlines()[0]}"
            if cause
            else text.partition(", set env")[0]
        )
    return _first(text)


def keys() -> list[str]:
    """Return every key that the command line accepts, nested ones with their dots."""
    nested = [f"{outer}.{item.name}" for outer, cls in NESTED.items() for item in fields(cls)]
    return [item.name for item in fields(Schema)] + nested


def options(group: str) -> list[str]:
    """Return the options of a configuration group: the files of its folder and, of `init`, methods without one."""
    files = [path.stem for path in (conf_dir() / group).glob("*.yaml")]
    return sorted([*files, *(methods_without_yaml() if group == "init" else [])])


def _unreadable(word: str) -> str:
    group, equals, value = word.lstrip("+").partition("=")
    if equals and group in _BY_PATH and "/" in value:
        return f"{word}: {_BY_PATH[group].format(value)}"
    if re.fullmatch(r"[\w./]+", word):
        return f"{word}: a value is missing; {word}=<value>"
    return f"{word}: cannot be read as key=value; quote a value that holds spaces, commas or brackets: \"key='a, b'\""


def _missing(match: re.Match[str], cause: str) -> str:
    group, _, name = match["path"].partition("/")
    if "/" in name and group in ("hydra", "experiment", "debug"):
        group, _, name = match["path"].rpartition("/")
    if not name:
        group, name = "", group
    if group in _BY_PATH and ("/" in name or Path(name).exists()):
        return f"{group}={name}: {_BY_PATH[group].format(name)}"
    if not group:
        return f"no configuration {name!r} in {conf_dir()}"
    listed = re.findall(r"^\t(\S+)$", match.string, re.MULTILINE) or options(group)
    return f"{group}={name}: {near(name, listed)}" if listed else f"{group}={name}: there is no such group"


# What to write where a name of a group was to be a path, or an id on the hub.
_BY_PATH = {
    "model": "a folder or a hub id goes into a field: model=hf model.path={0}",
    "task": "a file or folder of your own data goes into a field: task=jsonl task.path={0}",
    "study": "a study's file ends in .yaml: study=<folder>/<name>.yaml; or --config-dir=<d> for <d>/study/<name>.yaml",
    "init": "a method is named: init=<name>; one of your own lies in <d>/init/<name>.yaml: --config-dir=<d>",
}


def _unknown(match: re.Match[str], cause: str) -> str:
    return _unknown_key(match["key"])


def _unknown_key(key: str) -> str:
    group = key.partition(".")[0]
    if "." in key and group in ("init", "task", "model", "study"):
        known = fields_of(group)
        if key in known:  # of others
            having = ", ".join(sorted(known[key])[:4])
            return f"{key}: the chosen {group} has no such field; it is one of {having}"
        hint = near(key, known) if near(key, known).startswith("did") else f"see conf/{group}"
        return f"{key}: the chosen {group} has no such field; {hint}"
    if key.startswith("hydra."):
        return f"{key}: no such field of Hydra's, or of the chosen {key.split('.')[1]}"
    nested = [name for group in GROUPS for name in fields_of(group)]
    return f"{key}: no such key; {near(key, [*keys(), *nested])}"


def _no_option(match: re.Match[str], cause: str) -> str:
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    for word in sys.argv[1:]:
        group, _, value = word.lstrip("+").partition("=")
        if group in groups and not re.match(r"[A-Za-z\[]", value.replace("null", "")):
            return f"{word}: {group} needs the name of an option; {near('', options(group))}"
    return "a word of the command line has no key; key=value is needed"


def _ambiguous(match: re.Match[str], cause: str) -> str:
    return f"{match['word']}: several values are a sweep, which needs -m (or, as one list, [..])"


def _merge(match: re.Match[str], cause: str) -> str:
    key, _, value = match["override"].strip().partition("=")
    typed = re.search(r"could not be converted to (\w+)", match.string + cause)
    if typed:
        return f"{key}={value}: must be {_TYPES.get(typed[1], typed[1])}"
    if "is not Optional" in match.string + cause:
        return f"{key}={value}: a value is needed"
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", match.string + cause)
    if unknown:
        return _unknown_key(key)
    return f"{key}={value}: {_first(cause or match.string.split(chr(10), 1)[-1])}"


def _first(text: str) -> str:
    """Return the first line, and the one after it where the first only announces it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else "the configuration cannot be composed"


# Pattern in the text of Hydra or OmegaConf -> the line for it, from the match and the text of the cause.
_RULES: list[tuple[str, Callable[[re.Match[str], str], str]]] = [
    (r"Could not (?:find|load) '(?P<path>[^']+)'", _missing),
    (r"Error merging override (?P<override>[^\n]+)", _merge),
    (r"Could not override '(?P<key>[^'@]+)[^']*'", _unknown),
    (r"Could not append to config\. An item is already at '(?P<key>[^']+)'",
     lambda match, cause: f"+{match['key']}: exists already; leave out the +"),
    (r"(?:Ambiguous value for argument|Sweep parameters) '(?P<word>[^']+)'", _ambiguous),
    (r"Config group override must be a string or a list", _no_option),
]  # fmt: skip


def is_composition_error(error: BaseException) -> bool:
    """Return whether an exception comes from composing or parsing the configuration."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    plain = isinstance(error, ValueError | AssertionError) and "Config group override" in str(error)
    return plain or isinstance(error, HydraException | OmegaConfBaseException)
