"""Prompts made of several fields of a row: `task.template="{instruction} {input}"`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from lorax.errors import UserError
from lorax.tasks.readers.rows import Row, written

Piece = tuple[str, str | None]
"""Literal text, and the field after it if there is one."""


@dataclass(frozen=True)
class Template:
    r"""A text with fields in braces.

    `{field}` stands for a row's field, `{{` and `}}` for braces. In a template without a line break of its own (the
    command line cannot hold one) `\n` is a line break, and a backslash is written twice. Fields go in without white
    space around them, and may be empty; a line of the template whose fields are all empty is left out, with the
    blank lines before it. White space around the whole is cut off.

    Examples:
        >>> template = Template("{instruction}\n\n{input}")
        >>> template.fill(("", {"instruction": "Add.", "input": "1 + 1"}))
        'Add.\n\n1 + 1'
        >>> template.fill(("", {"instruction": "Add.", "input": None}))
        'Add.'
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UserError(f"task.template={self.text}: one text; quote it twice: 'task.template=\"{{a}}\"'")
        if not self.fields:
            raise UserError(f"task.template={self.text!r}: names no field; write {{field}}")

    @cached_property
    def lines(self) -> list[list[Piece]]:
        """The pieces of each line.

        Raises:
            UserError: a brace without its other half, or a format that fields do not take.
        """
        text = self.text if "\n" in self.text else re.sub(r"\\(\\|n)", _escaped, self.text)
        try:
            parsed = [list(Formatter().parse(line)) for line in text.split("\n")]
        except ValueError as error:
            raise UserError(f"task.template={self.text!r}: {error}; a brace itself is {{{{ or }}}}") from None
        for _, field, options, conversion in (piece for line in parsed for piece in line):
            if field == "" or options or conversion:
                raise UserError(f"task.template={self.text!r}: {{field}} takes a field's name and nothing else")
        return [[(literal, field) for literal, field, _, _ in line] for line in parsed]

    @cached_property
    def fields(self) -> list[str]:
        """The fields that are named."""
        return list(dict.fromkeys(field for line in self.lines for _, field in line if field is not None))

    def fill(self, row: Row) -> str:
        """Return the text with a row's fields in it.

        Raises:
            UserError: a field that the row does not have (near misses), that is no text, or all of them empty.
        """
        values = {field: written(row, field) for field in self.fields}
        if not any(values.values()):
            raise UserError(f"{row[0]}: {' and '.join(map(repr, values))} are empty")
        kept: list[str] = []
        for line in self.lines:
            fields = [field for _, field in line if field is not None]
            if fields and not any(values[field] for field in fields):
                while kept and not kept[-1].strip():
                    kept.pop()
                continue
            kept.append("".join(literal + (values[field] if field is not None else "") for literal, field in line))
        return "\n".join(kept).strip()


def _escaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else "\\"
