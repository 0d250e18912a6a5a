"""From examples to token ids: the model's own chat template, the loss on the answer only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError
from lorax.forward.batch import Batch, Encoded, collate, order
from lorax.forward.token_cache import cached

if TYPE_CHECKING:
    from lorax.models.registry import Loaded
    from lorax.tasks.base import Example, Task

__all__ = ["Batch", "Encoded", "collate", "encode", "order"]


def encode(task: Task, loaded: Loaded, split: str, shots: bool = False) -> list[Encoded]:
    """Encode one split of a task for a model.

    Prompts go through the tokenizer's chat template where it has one (system text, then the shots
    if asked for, then the prompt), else they are plain text. The answer is tokenised as the
    continuation of exactly the prompt that generation starts from, so that what is trained is what
    is decoded. Encoded splits are kept on disk (see `token_cache`).

    Args:
        task: the task.
        loaded: model, tokenizer and kind.
        split: train | validation | test | heldout.
        shots: put `task.shots` before the prompt.

    Raises:
        UserError: an example does not fit into the model's context; names it, its length and the bound.
    """
    examples: Sequence[Example] = getattr(task, split)
    turns = [(shot.prompt, shot.answer) for shot in task.shots] if shots else []
    parts = [loaded.kind, task.system, turns, limit(loaded)]
    if loaded.kind == "classification":
        texts = [(example.prompt, str(example.label)) for example in examples]
    else:
        texts = [(example.prompt, example.answer) for example in examples]
    pairs = cached(loaded.tokenizer, [*parts, texts], lambda: list(_pairs(loaded, task.system, turns, texts)))
    bound = limit(loaded)
    for (ids, labels), example in zip(pairs, examples, strict=True):
        length = len(ids) + (len(labels) if loaded.kind == "causal" else 0)
        if bound is not None and length > bound:
            raise UserError(f"{task.name} {split}: example {example.id} has {length} tokens, the model takes {bound}")
    return [Encoded(ids, labels, example) for (ids, labels), example in zip(pairs, examples, strict=True)]


def limit(loaded: Loaded) -> int | None:
    """Return how many tokens the model takes, or None if it does not say."""
    declared = getattr(loaded.model.config, "max_position_embeddings", None)
    own = getattr(loaded.tokenizer, "model_max_length", None)
    bounds = [int(bound) for bound in (declared, own) if bound is not None and 0 < bound < 10**9]
    return min(bounds) if bounds else None


def prompt_text(tokenizer: Any, system: str | None, turns: Sequence[tuple[str, str]], prompt: str) -> str:
    """Return the text that a generation starts from.

    Without a chat template: the system text, the shots and the prompt, blank lines between them,
    and a line break before the answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        before = [system] if system else []
        before += [f"{question}\n{answer}" for question, answer in turns]
        return "\n\n".join([*before, prompt]) + "\n"
    return _templated(tokenizer, _messages(system, turns, prompt), add_generation_prompt=True)


def _pairs(
    loaded: Loaded, system: str | None, turns: list[tuple[str, str]], texts: list[tuple[str, str]]
) -> Iterator[tuple[list[int], list[int]]]:
    tokenizer, bound = loaded.tokenizer, limit(loaded)
    if loaded.kind == "classification":
        encoded = tokenizer([text for text, _ in texts], truncation=bound is not None, max_length=bound)
        yield from ((list(ids), [int(label)]) for ids, (_, label) in zip(encoded["input_ids"], texts, strict=True))
    elif loaded.kind == "seq2seq":
        for text, answer in texts:
            question = prompt_text(tokenizer, system, turns, text) if system or turns else text
            yield tokenizer(question)["input_ids"], _ended(tokenizer, tokenizer(text_target=answer)["input_ids"])
    else:
        for text, answer in texts:
            yield _causal_pair(tokenizer, system, turns, text, answer)


def _causal_pair(
    tokenizer: Any, system: str | None, turns: list[tuple[str, str]], prompt: str, answer: str
) -> tuple[list[int], list[int]]:
    start = prompt_text(tokenizer, system, turns, prompt)
    templated = bool(getattr(tokenizer, "chat_template", None))
    whole, rest = start + answer, answer
    if templated:
        messages = [*_messages(system, turns, prompt), {"role": "assistant", "content": answer}]
        closed = _templated(tokenizer, messages)
        if closed.startswith(start):
            whole, rest = closed, closed[len(start) :]
    # A template writes its own special tokens; plain text gets the tokenizer's (a BOS, if any).
    ids = _without_end(tokenizer, tokenizer(start, add_special_tokens=not templated)["input_ids"])
    joint = tokenizer(whole, add_special_tokens=not templated)["input_ids"]
    if joint[: len(ids)] == ids and len(joint) > len(ids):
        labels = joint[len(ids) :]
    else:  # the boundary merges into one token: the answer is what can follow the prompt's tokens
        labels = tokenizer(rest, add_special_tokens=False)["input_ids"]
    return list(ids), _ended(tokenizer, list(labels))


def _ended(tokenizer: Any, labels: list[int]) -> list[int]:
    """Cut after the first end token, so that the model learns to stop there; add one if none is there."""
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("the tokenizer has no end-of-sequence token: a model cannot learn where an answer ends")
    return labels[: labels.index(end) + 1] if end in labels else [*labels, end]


def _without_end(tokenizer: Any, ids: list[int]) -> list[int]:
    """Drop the end token that some tokenizers append: the answer comes before it."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not tokenizer.chat_template else ids


def _templated(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    """Apply the chat template: no thinking aloud, and the system text in the first turn where it has no role."""
    from jinja2.exceptions import TemplateError

    options |= {"tokenize": False, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
        system, first, *rest = messages
        joined = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
        return tokenizer.apply_chat_template([joined, *rest], **options)


def _messages(system: str | None, turns: Sequence[tuple[str, str]], prompt: str) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": prompt}]
