"""One kind of error for bad input: a single clear line, shown without a traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: names the value, the bound or the near misses, and the place."""


def near(value: object, options: Iterable[object], shown: int = 12) -> str:
    """Return the tail of an error line: the near misses of `value`, else the options.

    Args:
        value: what was given.
        options: what is accepted.
        shown: at most this many options are listed when nothing is near.

    Returns:
        `did you mean 'x'?` or `choose from a, b, c`.

    Examples:
        >>> near("loraga", ["lora", "lora_ga", "pissa"])
        "did you mean 'lora_ga' or 'lora'?"
        >>> near("zzz", ["lora", "pissa"])
        'choose from lora, pissa'
    """
    names = [str(option) for option in options]
    close = difflib.get_close_matches(str(value), names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    tail = ", ..." if len(names) > shown else ""
    return "choose from " + ", ".join(names[:shown]) + tail
