"""Hydra's and OmegaConf's errors as the one line that a user of lorax reads."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import fields

from lorax.config import Schema, Train, conf_dir, methods_without_yaml
from lorax.errors import UserError, near

_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def composition_message(error: BaseException) -> str:
    """Return one line for an error of composition: the value, the place, the near misses."""
    wrapped = _user_error(error)
    if wrapped is not None:
        return one_line(wrapped)
    text = str(error).strip()
    if (word := getattr(error, "override", None)) is not None:
        return _unreadable(word)
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
    """Return the options of a configuration group: the files of its folder and, of `init`, methods without one."""
    files = [path.stem for path in (conf_dir() / group).glob("*.yaml")]
    return sorted([*files, *(methods_without_yaml() if group == "init" else [])])


def _user_error(error: BaseException | None) -> UserError | None:
    """Return our own error that Hydra has wrapped, if there is one: a launcher may refuse its fields."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _unreadable(word: str) -> str:
    if re.fullmatch(r"[\w./]+", word):
        return f"{word}: a value is missing; {word}=<value>"
    return f"{word}: cannot be read as key=value; quote a value that holds spaces, commas or brackets: \"key='a, b'\""


def _missing(match: re.Match[str], cause: str) -> str:
    group, _, name = match["path"].rpartition("/")
    if not group:
        return f"no configuration {name!r} in {conf_dir()}"
    listed = re.findall(r"^\t(\S+)$", match.string, re.MULTILINE) or options(group)
    return f"{group}={name}: {near(name, listed)}" if listed else f"{group}={name}: there is no such group"


def _unknown(match: re.Match[str], cause: str) -> str:
    return _unknown_key(match["key"])


def _unknown_key(key: str) -> str:
    group = key.partition(".")[0]
    if "." in key and group in ("init", "task", "model", "study"):
        known = _fields_of(group)
        if key in known:  # of others
            having = ", ".join(sorted(known[key])[:4])
            return f"{key}: the chosen {group} has no such field; it is one of {having}"
        hint = near(key, known) if near(key, known).startswith("did") else f"see conf/{group}"
        return f"{key}: the chosen {group} has no such field; {hint}"
    if key.startswith("hydra."):
        return f"{key}: no such field of Hydra's, or of the chosen {key.split('.')[1]}"
    nested = [name for group in ("init", "task", "model") for name in _fields_of(group)]
    return f"{key}: no such key; {near(key, [*keys(), *nested])}"


def _fields_of(group: str) -> dict[str, set[str]]:
    """Return the fields that the options of a group set in their YAML files, nested with dots; and which set them."""
    import yaml

    names: dict[str, set[str]] = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        for key, value in (yaml.safe_load(path.read_text()) or {}).items():
            inner = value if isinstance(value, dict) else {}
            for name in (f"{group}.{key}", *(f"{group}.{key}.{name}" for name in inner)):
                if key != "defaults":
                    names.setdefault(name, set()).add(path.stem)
    return dict(sorted(names.items()))


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
    lines = [line.strip() for line in text.splitlines() if line.strip()]
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


def one_line(error: BaseException) -> str:
    """Return an exception as a single line, its kind first unless it is meant for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:400]}"


def is_composition_error(error: BaseException) -> bool:
    """Return whether an exception comes from composing or parsing the configuration."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    plain = isinstance(error, ValueError) and "Config group override" in str(error)
    return plain or isinstance(error, HydraException | OmegaConfBaseException)
