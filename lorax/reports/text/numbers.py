"""Numbers as text, and tables as Markdown and LaTeX; one place, so that all outputs read alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

NOTHING = "-"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
    "|": r"$|$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$", "∞": r"$\infty$",
}  # fmt: skip


def missing(value: Any) -> bool:
    """Return whether there is nothing to show: None or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value) == "<NA>"


def number(value: Any, digits: int = 3) -> str:
    """Return a number to so many significant digits; text passes through, nothing is `-`.

    Examples:
        >>> number(0.000316228), number("1 .. 2"), number(None)
        ('0.000316', '1 .. 2', '-')
    """
    if missing(value):
        return NOTHING
    return value if isinstance(value, str) else f"{value:.{digits}g}"


def count(value: Any) -> str:
    """Return a whole number with thousands marked.

    Examples:
        >>> count(1048576.0)
        '1,048,576'
    """
    if missing(value):
        return NOTHING
    return value if isinstance(value, str) else f"{int(value):,}"


def span(values: Sequence[float | None], text: Callable[[Any], str] = number) -> float | str | None:
    """Return the one value, or both ends as text, or None.

    Examples:
        >>> span([2.0, 2.0]), span([1, None, 4096], count), span([])
        (2.0, '1 .. 4,096', None)
    """
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    if known[-1] == known[0] or math.isclose(known[0], known[-1], rel_tol=1e-6):
        return known[0]
    return f"{text(known[0])} .. {text(known[-1])}"


def rate(value: Any) -> str:
    """Return a learning rate as papers print it.

    Examples:
        >>> rate(0.0001778), rate(0.001)
        ('1.78e-4', '1e-3')
    """
    if missing(value) or isinstance(value, str):
        return NOTHING if missing(value) else value
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def points(value: Any, signed: bool = False) -> str:
    """Return a fraction in percentage points, one decimal.

    Examples:
        >>> points(0.0123, signed=True), points(0.5)
        ('+1.2', '50.0')
    """
    if missing(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    return text.replace("-0.0", "0.0") if text.endswith("-0.0") else text


def bounded(value: Any, low: Any, high: Any, signed: bool = False) -> str:
    """Return `54.3 [52.1, 56.5]`; without the interval where it is unbounded (one seed).

    Examples:
        >>> bounded(0.543, 0.521, 0.565)
        '54.3 [52.1, 56.5]'
    """
    if missing(value):
        return NOTHING
    if missing(low) or missing(high) or math.isinf(low) or math.isinf(high):
        return points(value, signed)
    return f"{points(value, signed)} [{points(low, signed)}, {points(high, signed)}]"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table; the first `left` columns to the left, the others to the right."""
    align = ["left"] * left + ["right"] * (len(head) - left)
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in body]
    return tabulate(cells, list(head), "pipe", disable_numparse=True, colalign=align if cells else None)


def latex(
    head: Sequence[str], body: Sequence[Sequence[str]], caption: str, label: str, notes: Sequence[str] = ()
) -> str:
    """Return a LaTeX table that needs only `booktabs`: head in two rules, notes below in small print.

    Args:
        head: column titles; the first column is set to the left, the others to the right.
        body: cells as plain text; everything special is escaped here.
        caption: plain text.
        label: the part after `tab:`.
        notes: lines under the table, plain text.
    """
    columns = "l" + "r" * (len(head) - 1)
    lines = [
        r"\begin{table}[t]", r"\centering\small\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{escape(caption)}}}", rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
        " & ".join(escape(cell) for cell in head) + r" \\", r"\midrule",
        *(" & ".join(escape(str(cell)) for cell in line) + r" \\" for line in body),
        r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    if notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright"]
        lines += [escape(note) + r"\par" for note in notes]
        lines += [r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escape(text: str) -> str:
    r"""Return plain text with LaTeX's special characters escaped and minus signs as such.

    Examples:
        >>> escape("lora_ga 95 %"), escape("-0.4 [-2.0, 1e-3]")
        ('lora\\_ga 95 \\%', '$-$0.4 [$-$2.0, 1e-3]')
    """
    plain = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", plain)
