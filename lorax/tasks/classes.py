"""Whether the values of a label column are classes: not numbers on a scale, and none written in two ways."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from decimal import Decimal

from lorax.errors import UserError

_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)
"""A number as a scale has it: 2, -0.5, .5, 1e-05; 007 is a code."""


def _folded(name: str) -> str:
    """Return a label without what the eye does not tell apart: case, runs of white space, ways to write an accent."""
    return unicodedata.normalize("NFC", " ".join(name.split()).casefold())


def check_classes(names: Collection[str], where: str) -> None:
    """Refuse labels that are no classes.

    Args:
        names: every different label, of all splits.
        where: what the message begins with.

    Raises:
        UserError: fractional numbers (a regression target); two labels that differ only in how they are
            written, such as 1 and 1.0, or TRUE and true.
    """
    numbers = {name: Decimal(name) for name in names if _NUMBER.fullmatch(name)}
    fractions = sorted(name for name, number in numbers.items() if number != number.to_integral_value())
    if fractions and (len(numbers) == len(names) or len(fractions) * 2 > len(names)):
        shown = ", ".join(fractions[:3])
        raise UserError(f"{where}: the labels are numbers on a scale ({shown}), not classes; round or name them")
    written: dict[object, str] = {}
    for name in sorted(names):
        key: object = numbers[name] if name in numbers else _folded(name)
        if key in written:
            raise UserError(
                f"{where}: classes {written[key]!r} and {name!r} differ only in how they are written; write them alike"
            )
        written[key] = name
