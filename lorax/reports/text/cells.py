"""Texts that users give, in files that other programs read: a label is no formula, no column and no script."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With these a cell begins that a spreadsheet would compute."""


def to_csv(frame: pd.DataFrame) -> str:
    r"""Return a table as CSV; an apostrophe stands before a text that a spreadsheet would take for a formula.

    Examples:
        >>> to_csv(pd.DataFrame({"label": ["=1+1", "lora"], "difference": [-0.5, 1.0]}))
        "label,difference\n'=1+1,-0.5\nlora,1.0\n"
    """
    named = frame.rename(columns=_plain)
    texts = {name: named[name].map(_plain) for name in named.columns if named[name].dtype.kind not in "biufcmM"}
    return named.assign(**texts).to_csv(index=False, lineterminator="\n")


def _plain(value: Any) -> Any:
    """Return a text with the apostrophe, if it needs one; a text that is a number, such as `-0.5`, is left."""
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value.replace(",", "").split(" .. ")[0])
    except ValueError:
        return f"'{value}"
    return value


def to_json(tables: Mapping[str, pd.DataFrame]) -> str:
    r"""Return tables as one JSON object, name -> rows; what was not measured is null, an open end "inf" or "-inf".

    Examples:
        >>> to_json({"rows": pd.DataFrame({"arm": ["lora"], "high": [math.inf], "low": [None]})})
        '{\n "rows": [\n  {\n   "arm": "lora",\n   "high": "inf",\n   "low": null\n  }\n ]\n}\n'
    """
    rows = {name: frame.astype(object).to_dict("records") for name, frame in tables.items()}
    plain = {name: [{key: _json(value) for key, value in row.items()} for row in of] for name, of in rows.items()}
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def _json(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return None if value is pd.NA or value is pd.NaT else value


def to_markdown(text: str, cell: bool = True) -> str:
    r"""Return a text as it stands in a cell, or in a line, of Markdown: tags escaped, no line break, no bar in a cell.

    In a line, what stands between backticks is code already and stays as it is.

    Examples:
        >>> to_markdown("a|b <script>\nx < 3 </b>")
        'a\\|b &lt;script> x < 3 &lt;/b>'
        >>> to_markdown("`+study=<name>` and <b>", cell=False)
        '`+study=<name>` and &lt;b>'
    """
    flat = " ".join(text.splitlines())
    if cell:
        return _TAG.sub("&lt;", flat.replace("|", "\\|"))
    return "".join(part if part.startswith("`") else _TAG.sub("&lt;", part) for part in _CODE.split(flat))


_TAG, _CODE = re.compile(r"<(?=[A-Za-z/!?])"), re.compile(r"(`[^`]*`)")
