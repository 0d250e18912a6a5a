"""Prompts and answers as token ids: the model's own chat template, and the answer as what continues the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.forward.chat_template import closed, folded, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[tuple[str, str]]
"""Worked examples before the prompt: question and answer."""
Pair = tuple[list[int], list[int]]
"""The token ids of an input, and of its labels."""


def prompt_text(tokenizer: PreTrainedTokenizerBase, system: str | None, turns: Turns, prompt: str) -> str:
    """Return the text that a generation starts from.

    Without a chat template: the system text, the shots and the prompt, blank lines between them,
    and a line break before the answer.
    """
    if not tokenizer.chat_template:
        before = [system] if system else []
        before += [f"{question}\n{answer}" for question, answer in turns]
        return "\n\n".join([*before, prompt]) + "\n"
    return render(tokenizer, messages_of(system, turns, prompt))


def causal_pair(tokenizer: PreTrainedTokenizerBase, system: str | None, turns: Turns, prompt: str, answer: str) -> Pair:
    """Return the ids of the prompt that generation starts from, and of the answer as its continuation.

    The answer ends in the end token. With a chat template it is what the template writes as the
    assistant's turn, else, where the template leaves the answer out or changes it, the plain text.
    """
    start = prompt_text(tokenizer, system, turns, prompt)
    templated = bool(tokenizer.chat_template)
    whole, continuation = start + answer, answer
    if templated:
        ended_turn = closed(tokenizer, [*messages_of(system, turns, prompt), {"role": "assistant", "content": answer}])
        if ended_turn is not None and ended_turn.startswith(start):
            whole, continuation = ended_turn, ended_turn[len(start) :]
    # A template writes its own special tokens; plain text gets the tokenizer's (a BOS, if any).
    ids = _without_end(tokenizer, tokenizer(start, add_special_tokens=not templated)["input_ids"])
    together = tokenizer(whole, add_special_tokens=not templated)["input_ids"]
    if together[: len(ids)] == ids and len(together) > len(ids):
        labels = together[len(ids) :]
    else:  # the last of the prompt and the first of the answer merge into one token: encode the answer by itself
        labels = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    return list(ids), ended(tokenizer, list(labels))


def announce(tokenizer: PreTrainedTokenizerBase, system: str | None) -> None:
    """Say, once, if a template does without the system role: encoded splits may come from the cache in silence."""
    if tokenizer.chat_template and system:
        folded(tokenizer, messages_of(system, (), ""))


def ended(tokenizer: PreTrainedTokenizerBase, labels: list[int]) -> list[int]:
    """Cut after the first end token, so that the model learns to stop there; add one if there is none.

    Raises:
        UserError: the tokenizer has no end token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("the tokenizer has no end-of-sequence token: a model cannot learn where an answer ends")
    return labels[: labels.index(end) + 1] if end in labels else [*labels, end]


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Drop the end token that some tokenizers append: the answer comes before it."""
    appended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not tokenizer.chat_template
    return ids[:-1] if appended else ids


def messages_of(system: str | None, turns: Turns, prompt: str) -> list[dict[str, str]]:
    """Return system text, exchanges and prompt as messages."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": prompt}]
