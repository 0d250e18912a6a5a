"""From examples to token ids and padded tensors: the loss is on the answer, masked by position.

causal          input = prompt + answer[:-1]; the answer (with its end token) is predicted
seq2seq         encoder input = prompt; decoder input = start + answer[:-1]; the answer is predicted
classification  input = text; the class is predicted
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.errors import UserError
from lorax.training.token_cache import cached

if TYPE_CHECKING:
    from lorax.models.registry import Loaded
    from lorax.tasks.base import Example, Task


@dataclass(frozen=True)
class Encoded:
    """One example in token ids."""

    ids: list[int]
    """The prompt (causal), the encoder's input (seq2seq) or the text (classification)."""
    labels: list[int]
    """What is predicted: the answer's tokens and the end token, or the one class."""
    example: Example

    def __len__(self) -> int:
        return len(self.ids) + len(self.labels)


@dataclass
class Batch:
    """Right-padded tensors; `positions` says where in the flattened output the labels are predicted."""

    inputs: dict[str, Tensor]
    """What the model's forward takes."""
    positions: Tensor
    """(N,) indices into the (rows * tokens) grid of outputs; rows themselves for classification."""
    targets: Tensor
    """(N,) the token or class to be predicted at each position."""
    counts: list[int]
    """Labels in each row; sums to N."""
    prefix: Tensor | None = None
    """(lanes, p) tokens before those in `inputs`, the same for all rows of a lane; see `shared_prefix`."""

    @property
    def width(self) -> int:
        """Tokens in a padded row, the prefix included."""
        return self.inputs["input_ids"].shape[1] + (0 if self.prefix is None else self.prefix.shape[1])

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        move = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        prefix = None if self.prefix is None else self.prefix.to(device)
        return Batch(move, self.positions.to(device), self.targets.to(device), self.counts, prefix)


def order(seed: int, n: int, batch_size: int, steps: int) -> list[list[int]]:
    """Return the indices of every batch: permutations of the data, one after another, cut to size.

    Only `seed` (and the sizes) move it, so that all methods see the same data in the same order.
    Batches are always full: one that reaches the end of an epoch goes on in the next.

    Args:
        seed: the run's seed.
        n: number of training examples.
        batch_size: examples a step.
        steps: optimiser steps.

    Returns:
        `steps` lists of `batch_size` indices below `n`.

    Raises:
        UserError: there is no training example.

    Examples:
        >>> sorted(sum(order(0, 6, 2, 3), []))
        [0, 1, 2, 3, 4, 5]
    """
    if n < 1:
        raise UserError("the training split is empty: nothing to train on")
    # Seeded by a text, the generator is hashed over all of it: neighbouring seeds share nothing.
    generator = random.Random(f"order {seed}")
    stream: list[int] = []
    while len(stream) < batch_size * steps:
        stream += generator.sample(range(n), n)
    return [stream[start : start + batch_size] for start in range(0, batch_size * steps, batch_size)]


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


def collate(rows: Sequence[Encoded], loaded: Loaded, prefix: int = 0, lanes: int = 1) -> Batch:
    """Pad rows to a common length on the right and say where their labels are predicted.

    A causal model gets no attention mask: padding comes after every real token, where causal
    attention cannot see it. Padding is known by position, so a pad token that is also the end
    token is learnt like any other.

    Args:
        rows: the examples; those of a lane next to each other.
        loaded: kind of model, tokenizer.
        prefix: leading tokens to be computed once a lane instead of once a row (`shared_prefix`).
        lanes: K.
    """
    pad = pad_id(loaded.tokenizer)
    counts = [len(row.labels) for row in rows]
    targets = torch.tensor([label for row in rows for label in row.labels], dtype=torch.long)
    if loaded.kind == "causal":
        grid = _grid([row.ids[prefix:] + row.labels[:-1] for row in rows], pad)
        first = [len(row.ids) - prefix - 1 for row in rows]
        shared = torch.tensor([rows[0].ids[:prefix]] * lanes) if prefix else None
        return Batch({"input_ids": grid}, _positions(first, counts, grid.shape[1]), targets, counts, shared)
    grid = _grid([row.ids for row in rows], pad)
    lengths = torch.tensor([len(row.ids) for row in rows])
    inputs = {"input_ids": grid, "attention_mask": (torch.arange(grid.shape[1]) < lengths[:, None]).long()}
    if loaded.kind == "classification":
        return Batch(inputs, torch.arange(len(rows)), targets, counts)
    start = loaded.model.config.decoder_start_token_id
    inputs["decoder_input_ids"] = _grid([[start, *row.labels[:-1]] for row in rows], pad)
    width = inputs["decoder_input_ids"].shape[1]
    return Batch(inputs, _positions([0] * len(rows), counts, width), targets, counts)


def shared_prefix(rows: Sequence[Encoded], lanes: int, device: torch.device) -> int:
    """Return how many leading tokens all rows have in common, if computing them once a lane pays.

    Prompts of a task begin alike (the template, the system text, the instruction, the shots), and
    what a causal model makes of a beginning does not depend on the rest: its keys and values serve
    all rows, and gradients add up in them. It costs a second, short forward pass, so it pays where
    tokens are what takes the time: a fifth of them on a CPU, thousands on a GPU.

    Args:
        rows: examples of a causal model.
        lanes: K; the prefix is computed for each.
        device: where the model is.
    """
    common = len(os.path.commonprefix([row.ids[:-1] for row in rows]))
    saved = common * (len(rows) - lanes)
    whole = len(rows) * max(map(len, rows))
    return common if saved >= max(0.2 * whole, 32 if device.type == "cpu" else 8192) else 0


def widths(blocks: Sequence[Sequence[Encoded]], kind: str) -> list[dict[int, int]]:
    """Return, for each block of rows of one batch, {padded tokens: tokens if the block were alone}."""
    own = [_sizes(block, kind) for block in blocks]
    whole = [max(sizes) for sizes in zip(*own, strict=True)]
    return [dict(zip(whole, sizes, strict=True)) for sizes in own]


def _sizes(rows: Sequence[Encoded], kind: str) -> list[int]:
    """The padded widths of a batch: one, or the encoder's and the decoder's."""
    if kind == "causal":
        return [max(len(row.ids) + len(row.labels) for row in rows) - 1]
    prompts = max(len(row.ids) for row in rows)
    return [prompts, max(len(row.labels) for row in rows)] if kind == "seq2seq" else [prompts]


def pad_id(tokenizer: Any) -> int:
    """Return the id to pad with; any would do, since padding is known by its position."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if token is not None:
            return int(token)
    return 0


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


def _grid(rows: list[list[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long)


def _positions(first: list[int], counts: list[int], width: int) -> Tensor:
    flat = [
        row * width + column
        for row, (start, count) in enumerate(zip(first, counts, strict=True))
        for column in range(start, start + count)
    ]
    return torch.tensor(flat, dtype=torch.long)
