"""One kind of error for bad input: a single clear line, shown without a traceback, exit code 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LISTED = 160
"""Characters of the options that an error lists."""
LONGEST = 300
"""Characters of a line that a user reads."""
_WORDS = (120, 60, 30)
"""Characters that a word of such a line may have: as many as leave room for the rest."""

_BARE = re.compile(r"\(Request ID:[^)]*\)|^\d{3} (Client|Server) Error[.:]?( \(?for url:? \S+)?|^HTTPError:")


class UserError(ValueError):
    """Bad input: names the value, the bound or the near misses, and the place."""


def one_line(error: BaseException | str) -> str:
    r"""Return an exception, or a text, as one line of at most `LONGEST` characters; its kind first unless it is ours.

    Long words are cut in their middle before the line is cut at its end, where the near misses stand. What cannot be
    printed is escaped.

    Examples:
        >>> one_line(KeyError("rank")), one_line(UserError("rank=x:\n  \x00 no number"))
        ("KeyError: 'rank'", 'rank=x: \\x00 no number')
        >>> line = one_line(f"name={5000 * 'x'}: too long")
        >>> len(line), line[:12], line[-17:]
        (128, 'name=xxxxxxx', 'xxxxxxx: too long')
    """
    text = str(error)
    if isinstance(error, BaseException) and not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    line = " ".join(text[: 100 * LONGEST].split())
    line = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)
    for most in _WORDS:
        if len(line) > LONGEST or most == _WORDS[0]:
            line = re.sub(rf"\S{{{most + 1},}}", lambda word: _cut(word[0], most), line)  # noqa: B023
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def _cut(word: str, most: int) -> str:
    half = (most - 3) // 2
    return f"{word[:half]}...{word[-half:]}"


def hub_reason(error: BaseException) -> str:
    r"""Return all of the hub's first paragraph, without the bare status and the request's id.

    Gated, private and missing repositories answer with the same status: the paragraph alone tells them apart.

    Examples:
        >>> hub_reason(OSError("401 Client Error. (Request ID: Root=1-2;3)\n\nCannot access gated repo\nfor url x."))
        'Cannot access gated repo for url x.'
    """
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", str(error)) if part.strip()]
    told = [text for part in paragraphs if (text := _BARE.sub("", _BARE.sub("", part).strip()).strip(" .:"))]
    return f"{told[0]}." if told else type(error).__name__


def near(value: object, options: Iterable[object], shown: int = 12) -> str:
    """Return the tail of an error line: the near misses of `value`, else the options.

    Case does not count. Of dotted names under one prefix the last parts are compared; a name without a dot is
    near the dotted ones that end in something like it. What was given itself is never suggested.

    Args:
        value: what was given.
        options: what is accepted.
        shown: at most this many options are listed when nothing is near, and as many as fit into a line.

    Returns:
        `did you mean 'x'?` or `choose from a, b, c`.

    Examples:
        >>> near("loraga", ["lora", "lora_ga", "pissa"])
        "did you mean 'lora_ga' or 'lora'?"
        >>> near("zzz", ["lora", "pissa"])
        'choose from lora, pissa'
        >>> near("pth", ["task.path", "rank"]), near("task.path", ["task.path", "task.name"])
        ("did you mean 'task.path'?", 'choose from task.name')
    """
    given = str(value)
    names = [name for name in dict.fromkeys(map(str, options)) if name != given]
    scores = {name: _likeness(given.casefold(), name.casefold()) for name in names}
    close = sorted((name for name in names if scores[name] >= 0.6), key=lambda name: -scores[name])[:3]
    if close:
        return "did you mean " + " or ".join(repr(_short(name)) for name in close) + "?"
    listed: list[str] = []
    for name in map(_short, names[:shown]):
        if sum(map(len, listed)) + len(name) <= LISTED:
            listed.append(name)
    tail = ", ..." if len(names) > len(listed) else ""
    return "choose from " + ", ".join(listed) + tail if names else "there is no other"


def _likeness(given: str, name: str) -> float:
    """Return how alike two names are, 0 to 1."""
    prefix, dot, last = name.rpartition(".")
    if dot and given.startswith(f"{prefix}."):
        given, name = given[len(prefix) + 1 :], last
    elif dot and "." not in given:
        return max(0.99 * _ratio(given, last), _ratio(given, name))
    return _ratio(given, name)


def _ratio(given: str, name: str) -> float:
    matcher = difflib.SequenceMatcher(None, name, given)
    return matcher.ratio() if matcher.real_quick_ratio() >= 0.6 else 0.0


def _short(name: str) -> str:
    """Return a name that fits into a line: a column may be called by a whole sentence."""
    flat = " ".join(name.split())
    return flat if len(flat) <= 40 else flat[:37] + "..."
