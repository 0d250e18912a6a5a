r"""Documents as LaTeX: their tables and the sentences that explain them, to `\input` where booktabs is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorax.reports.text.document import Document

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
    "|": r"$|$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$", "∞": r"$\infty$", "≥": r"$\geq$",
}  # fmt: skip


def render(document: Document) -> str:
    """Return all tables of a document; a part's sentences stand below its first table, footnotes below each."""
    name = document.name
    pieces = [f"% {name}: needs \\usepackage{{booktabs}}; rebuild with `python -m lorax.tables {name}`"]
    for part in document.parts:
        for place, item in enumerate(part.tables):
            label = "-".join([name, *part.title.lower().split()[:1], str(place)]).replace("_", "-")
            caption = ": ".join(words for words in (part.title, item.title) if words)
            below = [*(part.lines if place == 0 else []), *item.footnotes]
            pieces.append(table(item.head, item.body, f"{caption}." if caption else "", label, below))
    return "\n".join(pieces)


def table(
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
        >>> escape("lora_ga 95 %"), escape("-0.4 [-2.0, 1e-3] +-1")
        ('lora\\_ga 95 \\%', '$-$0.4 [$-$2.0, 1e-3] $\\pm$1')
    """
    plain = "".join(_ESCAPED.get(character, character) for character in text.replace("+-", "±"))
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", plain)
