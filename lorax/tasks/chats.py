"""Conversations in a field: OpenAI's `messages` ({role, content}) and ShareGPT's `conversations` ({from, value}).

A system text if there is one, then turns of the user and the assistant in alternation. The last answer is the
row's; the exchanges before it are its history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorax.errors import UserError, near
from lorax.tasks.readers.rows import Row, text, value

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
}  # fmt: skip
_KEYS = (("role", "content"), ("from", "value"))
_CALLS = ("tool_calls", "function_call", "tool_call_id")
_TOOLS = ("tool", "function", "function_call", "observation", "ipython", "tool_call", "tool_response")


@dataclass(frozen=True)
class Exchange:
    """A user's text, the assistant's answer to it, and the system text and earlier exchanges before both."""

    prompt: str
    answer: str | None = None
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()


def is_chat(found: Any) -> bool:
    """Return whether a value is a list of messages."""
    return isinstance(found, Sequence) and not isinstance(found, str | bytes) and bool(found) and all(
        isinstance(message, Mapping) and any(role in message and content in message for role, content in _KEYS)
        for message in found
    )  # fmt: skip


def read_exchange(row: Row, prompt: str, answer: str) -> Exchange:
    """Return prompt and answer of a row whose fields may be texts or conversations.

    Args:
        row: the row.
        prompt: field of the prompt: a text, or a conversation that ends with the user's or the assistant's turn.
        answer: field of the answer: a text, or a conversation of one assistant's turn; where `prompt` holds the
            answer too, the same field, or one that the row does not have.

    Raises:
        UserError: turns that do not alternate, another role, a call of a tool, an answer given twice, no text.
    """
    if prompt in row[1] and is_chat(asked := value(row, prompt)):
        exchange = _exchange(asked, f"{row[0]}: field {prompt!r}")
    else:
        exchange = Exchange(text(row, prompt))
    if exchange.answer is not None:
        if answer != prompt and answer in row[1]:
            raise UserError(f"{row[0]}: fields {prompt!r} and {answer!r} both hold an answer; task.answer={prompt}")
        return exchange
    if answer == prompt:
        raise UserError(f"{row[0]}: field {prompt!r} holds no turn of the assistant's")
    if answer in row[1] and is_chat(given := value(row, answer)):
        turns = _turns(given, f"{row[0]}: field {answer!r}")
        if [role for role, _ in turns] != ["assistant"]:
            raise UserError(f"{row[0]}: field {answer!r}: {_roles(turns)}, not one turn of the assistant's")
        return replace(exchange, answer=turns[0][1])
    return replace(exchange, answer=text(row, answer))


def _exchange(found: Sequence[Mapping[str, Any]], where: str) -> Exchange:
    turns = _turns(found, where)
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    roles = [role for role, _ in turns]
    if not roles or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        raise UserError(f"{where}: {_roles(turns)}; user and assistant are needed in alternation, the user first")
    exchanges = [(turns[place][1], turns[place + 1][1]) for place in range(0, len(turns) - 1, 2)]
    if roles[-1] == "user":
        return Exchange(turns[-1][1], None, system, tuple(exchanges))
    return Exchange(*exchanges[-1], system, tuple(exchanges[:-1]))


def _turns(found: Sequence[Mapping[str, Any]], where: str) -> list[tuple[str, str]]:
    """Return (role, text) of every message."""
    turns = []
    for number, message in enumerate(found, start=1):
        role_key, content_key = next(keys for keys in _KEYS if set(keys) <= message.keys())
        place, role = f"{where}, message {number}", str(message[role_key])
        if role in _TOOLS:
            raise UserError(f"{place}: a turn of a tool's (role {role!r}); calls of tools are not read")
        if role not in ROLES:
            raise UserError(f"{place}: role {role!r}; {near(role, ROLES)}")
        if any(message.get(key) for key in _CALLS):
            raise UserError(f"{place}: a call of a tool; calls of tools are not read")
        content = message[content_key]
        if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict) and "text" in content[0]:
            content = content[0]["text"]
        turns.append((ROLES[role], text((place, {content_key: content}), content_key)))
    return turns


def _roles(turns: Sequence[tuple[str, str]]) -> str:
    roles = [role for role, _ in turns]
    return f"{len(roles)} turns ({', '.join(roles[:4])}{', ...' if len(roles) > 4 else ''})"
