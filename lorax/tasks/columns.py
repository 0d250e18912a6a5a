"""Columns that say by their names what a row is: chats, Alpaca's instructions, prompts with completions. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lorax.errors import UserError
from lorax.tasks.chats import Exchange
from lorax.tasks.readers.rows import Row, Rows, is_missing, value, written


@dataclass(frozen=True)
class Layout:
    """Fields that hold prompt and answer."""

    prompt: str
    answer: str
    template: str | None = None
    beside: tuple[str, ...] = ()
    """Fields of the same layout that may be there too."""

    @property
    def words(self) -> str:
        """What is said of rows that are read this way."""
        if self.prompt == self.answer:
            return f"read as conversations in the field {self.prompt!r}"
        if self.template:
            return f"prompts made of {self.template!r}, answers in the field {self.answer!r}"
        return f"prompts in the field {self.prompt!r}, answers in {self.answer!r}"


ALPACA = Layout("instruction", "output", "{instruction}\\n{input}", ("input", "system", "history"))
LAYOUTS = (Layout("messages", "messages"), Layout("conversations", "conversations"), ALPACA,
           Layout("prompt", "completion"))  # fmt: skip
"""Tried in this order where a row lacks the fields that are asked for."""
FIELDS = frozenset(name for one in LAYOUTS for name in (one.prompt, one.answer, *one.beside))


def recognise(fields: Collection[str]) -> Layout | None:
    """Return the layout that these fields are, or None.

    Examples:
        >>> recognise(["id", "messages"]).prompt, recognise(["prompt", "answer", "messages"])
        ('messages', None)
    """
    if "prompt" in fields and "answer" in fields:
        return None
    return next((one for one in LAYOUTS if one.prompt in fields and one.answer in fields), None)


def layout_of(rows: Mapping[str, Rows]) -> Layout | None:
    """Return the layout of the training rows' first; what Alpaca's rows may leave out is filled in for all."""
    found = recognise(rows["train"].rows[0][1]) if len(rows["train"]) else None
    if found is ALPACA:
        for part in rows.values():
            part.rows = [(where, {"input": None, **fields}) for where, fields in part.rows]
    return found


def beside(row: Row, exchange: Exchange) -> Exchange:
    """Return an exchange with what stands in Alpaca's columns `system` and `history`, [[question, answer], ...].

    Raises:
        UserError: a history that is no list of pairs of texts.
    """
    where, fields = row
    system = written(row, "system") if "system" in fields else ""
    pairs = value(row, "history") if "history" in fields else None
    pairs = [] if is_missing(pairs) or pairs == "" else pairs
    if not isinstance(pairs, list | tuple):
        raise UserError(f"{where}: field 'history' is not a list of questions with their answers")
    history = []
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise UserError(f"{where}: field 'history', item {number}: not a question with its answer")
        history.append((pair[0].strip(), pair[1].strip()))
    return Exchange(exchange.prompt, exchange.answer, system or None, tuple(history))
