"""Conversations with all of the assistant's turns as labels, cut out of the model's own chat template.

    text     <user> q1 <assistant> | a1 <end> | <user> q2 <assistant> | a2 <end>
    labels                           a1 <end>                           a2 <end>

A turn's labels are what the template writes between the prompt that its generation starts from and the end token of
that turn: what comes in addition when the turn is added to the messages before it. So the model is trained on what it
generates, whatever the template. Where a template writes an earlier turn otherwise once others follow (it drops its
thoughts, say), the labels would be what is never generated, and the conversation is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.forward.batch import Encoded
from lorax.forward.chat_template import closed, contains, folded, name_of, render
from lorax.forward.prompts import ended, messages_of
from lorax.forward.token_cache import cached

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorax.forward.prompts import Pair, Turns
    from lorax.models.registry import Loaded
    from lorax.tasks.base import Example

_LAST = "; task.turns=last trains on the last turn alone"


def conversations(loaded: Loaded, system: str | None, turns: Turns, examples: Sequence[Example]) -> list[Encoded]:
    """Encode examples, with the assistant's turns in their history as labels where they are trained on.

    Args:
        loaded: gives tokenizer and chat template.
        system: the task's system text.
        turns: worked examples, which are no labels.
        examples: the last turn is the answer.

    Raises:
        UserError: no chat template, or one that leaves out or alters a turn.
    """
    tokenizer = loaded.tokenizer
    texts = [
        (example.system or system, example.history, example.all_turns, example.prompt, example.answer)
        for example in examples
    ]

    def build() -> list[Pair]:
        return [
            conversation(tokenizer, own, [*turns, *history], prompt, answer, len(turns) if whole else None)
            for own, history, whole, prompt, answer in texts
        ]

    pairs = cached(tokenizer, ["conversations", turns, texts], build)
    return [_encoded(ids, bounds, example) for (ids, bounds), example in zip(pairs, examples, strict=True)]


def conversation(
    tokenizer: PreTrainedTokenizerBase, system: str | None, turns: Turns, prompt: str, answer: str, first: int | None
) -> Pair:
    """Return the ids of a whole conversation, and where the assistant's turns start and end in it.

    Args:
        tokenizer: with a chat template.
        system: the system text.
        turns: the exchanges before the last.
        prompt: the last exchange: the user's text.
        answer: and the assistant's.
        first: number of the first exchange whose answer counts; None: the last alone.

    Returns:
        ids, and [start, end, start, end, ...] of the turns that count.

    Raises:
        UserError: no chat template, or one that leaves out or alters a turn.
    """
    if not tokenizer.chat_template:
        raise UserError(f"several turns are trained on by a chat template, and the tokenizer has none{_LAST}")
    messages = [*messages_of(system, turns, prompt), {"role": "assistant", "content": answer}]
    messages = [*folded(tokenizer, messages)]
    whole = closed(tokenizer, messages)
    render(tokenizer, messages[:-1])  # refuses a template that leaves out a turn
    if whole is None:
        raise UserError(f"{name_of(tokenizer)}: leaves out or changes the assistant's text{_LAST}")
    numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    cuts: list[int] = []
    for number in numbers[len(turns) if first is None else first :]:
        start = render(tokenizer, messages[:number])
        after = closed(tokenizer, messages[: number + 1]) or ""
        end = len(os.path.commonprefix([whole, after]))  # some write an end token behind the very last turn
        if not whole.startswith(start) or not contains(whole[len(start) : end], messages[number]["content"]):
            raise UserError(f"{name_of(tokenizer)}: alters earlier turns of the assistant's once others follow{_LAST}")
        cuts += [len(start), end]
    return _tokens(tokenizer, whole, cuts)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]) -> Pair:
    """Return the ids of a text, and where the turns between its cuts start and end, each after its first end token."""
    ids, places = _placed(tokenizer, text, cuts)
    bounds = []
    for start, end in zip(places[::2], places[1::2], strict=True):
        turn = ids[start:end]
        stop = start + turn.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in turn else end
        bounds += [start, stop]
    last = ended(tokenizer, ids[bounds[-2] : bounds[-1]])
    return ids[: bounds[-2]] + last, [*bounds[:-1], bounds[-2] + len(last)]


def _placed(tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the ids of a text, and how many of them come before each cut.

    Where no token goes across the start of a turn, the text is tokenised as one; else piece by piece.
    """
    if tokenizer.is_fast:
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans, places, at = coded["offset_mapping"], [], 0
        for number, cut in enumerate(cuts):
            is_end = number % 2
            while at < len(spans) and (spans[at][1] <= cut if is_end else spans[at][0] < cut):
                at += 1
            places.append(at)
        if all(not place or spans[place - 1][1] <= cut for place, cut in zip(places[::2], cuts[::2], strict=True)):
            return list(coded["input_ids"]), places
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    tokens = [tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else [] for piece in pieces]
    counts = [sum(map(len, tokens[: number + 1])) for number in range(len(cuts))]
    return [token for piece in tokens for token in piece], counts


def _encoded(ids: list[int], bounds: Sequence[int], example: Example) -> Encoded:
    """Return the row whose labels lie between the bounds."""
    labels: list[int] = []
    given: list[tuple[int, tuple[int, ...]]] = []
    for place, (start, end) in enumerate(zip(bounds[::2], bounds[1::2], strict=True)):
        if place:
            given.append((len(labels), tuple(ids[bounds[2 * place - 1] : start])))
        labels += ids[start:end]
    return Encoded(ids[: bounds[0]], labels, example, tuple(given))
