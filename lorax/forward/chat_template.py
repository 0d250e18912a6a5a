"""A tokenizer's chat template, watched: what goes in must come out, or one line says what does not.

Templates leave things out without a word: the system role, earlier turns, half of a text. Each is tried once
with words that occur nowhere else, and every rendering is compared with what was given, white space and case aside.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]
"""{role, content}: an optional system text, then the user's and the assistant's turns in alternation."""

_tried: dict[tuple[str, tuple[str, ...]], str] = {}
_said: set[str] = set()


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """Return the text that the assistant's next turn goes on from.

    Where the template refuses or leaves out the system role, the system text begins the first turn.

    Raises:
        UserError: the template refuses the messages, or leaves out one of them.
    """
    messages = folded(tokenizer, messages)
    roles = [message["role"] for message in messages]
    shape = tuple(roles[: 3 + (roles[0] == "system")])  # more turns are more of the same
    wrong = _try(tokenizer, ("user",)) or _try(tokenizer, shape)
    text = "" if wrong else _apply(tokenizer, messages, add_generation_prompt=True)
    if wrong := wrong or _left_out(messages, text):
        raise UserError(f"{name_of(tokenizer)}: {wrong}")
    return text


def closed(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str | None:
    """Return messages that end in the assistant's turn; None where the template refuses them or changes that turn."""
    try:
        text = _apply(tokenizer, folded(tokenizer, messages))
    except UserError:
        return None
    return text if contains(text, messages[-1]["content"]) else None


def folded(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Messages:
    """Return the messages, the system text in the first turn where the template does without the system role.

    That is said once for each template.
    """
    why = _try(tokenizer, ("system", "user")) if messages[0]["role"] == "system" else ""
    if not why or _try(tokenizer, ("user",)):
        return messages
    if _key(tokenizer) not in _said:
        _said.add(_key(tokenizer))
        warnings.warn(f"{name_of(tokenizer)}: {why}; the system text goes into the first user turn", stacklevel=2)
    system, first, *others = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _try(tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...]) -> str:
    """Return what the template does wrong with messages of these roles, tried once with words of our own; else ""."""
    key = _key(tokenizer), roles
    if key not in _tried:
        messages = [{"role": role, "content": f"Lorax{number}{role}Probe"} for number, role in enumerate(roles)]
        try:
            _tried[key] = _left_out(messages, _apply(tokenizer, messages, add_generation_prompt=True))
        except UserError as error:
            _tried[key] = str(error).partition(": ")[2]
    return _tried[key]


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Messages, **options: Any) -> str:
    """Apply the template, without thinking aloud.

    Raises:
        UserError: the template raises an error of its own, or is broken.
    """
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template([*messages], tokenize=False, enable_thinking=False, **options))
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(f"{name_of(tokenizer)}: refuses {_roles(messages)} ({reason})") from error


def _left_out(messages: Messages, text: str) -> str:
    """Return which message does not occur in a rendering, turns in their order; "" if all do."""
    rendered, place = _flat(text).casefold(), 0
    for message in messages:
        words = _flat(message["content"]).casefold()
        found = rendered.find(words, 0 if message["role"] == "system" else place)
        if found < 0:
            return "leaves out " + (
                "the system role" if message["role"] == "system" else f"the {message['role']}'s text"
            )
        if message["role"] != "system":
            place = found + len(words)
    return ""


def _flat(text: str) -> str:
    """Return a text with every run of white space as one space."""
    return " ".join(text.split())


def _roles(messages: Messages) -> str:
    return ", ".join(message["role"] for message in messages[:4]) + (", ..." if len(messages) > 4 else "")


def _key(tokenizer: PreTrainedTokenizerBase) -> str:
    return repr(tokenizer.chat_template)


def contains(text: str, words: str) -> bool:
    """Return whether a text holds another, white space aside."""
    return _flat(words) in _flat(text)


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return how a message calls the template."""
    name = str(getattr(tokenizer, "name_or_path", "") or "")
    return f"the chat template of {name.rpartition('/')[2]}" if name else "the chat template"
