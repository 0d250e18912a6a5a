"""Documents as Markdown. Parts with pictures are left out: a Markdown file cannot hold them."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lorax.reports.text.cells import to_markdown
from lorax.reports.text.document import Document, Part


def render(document: Document, table_title: str = "### {}") -> str:
    """Return the document as Markdown: in each part the tables first, then its sentences as a list.

    Args:
        document: the report.
        table_title: how a table's title is written, with `{}` for the title.
    """
    blocks = [f"# {to_markdown(document.name, cell=False)}"]
    blocks += [to_markdown(document.question, cell=False)] if document.question else []
    for part in document.parts:
        if not part.pictures:
            blocks += _part(part, table_title)
    return "\n\n".join(blocks) + "\n"


def _part(part: Part, table_title: str) -> list[str]:
    """Return the blocks of one part; a blank line stands between any two."""
    blocks = [f"## {part.title}"] if part.title else []
    for item in part.tables:
        blocks += [table_title.format(to_markdown(item.title, cell=False))] if item.title else []
        blocks.append(table(item.head, item.body))
    return [*blocks, bullets(part.lines)] if part.lines else blocks


def bullets(lines: Sequence[str]) -> str:
    """Return sentences as a list."""
    return "\n".join(f"- {to_markdown(line, cell=False)}" for line in lines)


def table(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    r"""Return a Markdown table; the first `left` columns are set to the left, the others to the right.

    Examples:
        >>> print(table(["arm", "score"], [["lora|8", "54.3"]]))
        | arm     |   score |
        |:--------|--------:|
        | lora\|8 |    54.3 |
    """
    align = ["left"] * left + ["right"] * (len(head) - left)
    cells = [[to_markdown(str(cell)) for cell in line] for line in body]
    return tabulate(
        cells,
        [to_markdown(str(name)) for name in head],
        "pipe",
        disable_numparse=True,
        colalign=align if cells else None,
    )
