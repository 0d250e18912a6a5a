"""What a report consists of: parts with sentences, tables and pictures, all of it plain text.

Content modules build a `Document`; `markdown`, `latex` and `html` render it. Escaping is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table whose cells are text already."""

    head: Sequence[str]
    """Column titles; the first column is set to the left, the others to the right."""
    body: Sequence[Sequence[str]]
    """One sequence of cells for each row, as long as `head`."""
    title: str = ""
    footnotes: Sequence[str] = ()
    """What the numbers in the first column refer to. LaTeX moves tables about, so it prints these below
    the table; in Markdown and HTML they stand in a part of their own."""


@dataclass(frozen=True)
class Picture:
    """A drawing with the sentence that says what it shows."""

    caption: str
    svg: bytes
    """Content of the SVG file."""


@dataclass(frozen=True)
class Part:
    """A section: sentences, tables and pictures under one heading; without a title there is no heading."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Document:
    """A whole report."""

    name: str
    """The name of the study or sweep: the heading of the page."""
    parts: Sequence[Part]
    question: str = ""
    """What the reader wants to know, under the heading."""
