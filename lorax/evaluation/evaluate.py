"""Per-item scores: every lane answers every item of a split, all lanes in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lorax.evaluation.decode import Decoded, decode, row_means
from lorax.forward.active import active, one_base, steady
from lorax.forward.batch import Encoded, collate
from lorax.forward.encode import encode
from lorax.forward.readout import Readout, autocast, device_of, run_batch

if TYPE_CHECKING:
    from lorax.adapters.install import Adapters
    from lorax.forward.heads import Head
    from lorax.models.registry import Loaded
    from lorax.tasks.base import Task

Item = dict[str, Any]


def evaluate(
    loaded: Loaded,
    task: Task,
    split: str = "test",
    lanes: Sequence[Adapters] | None = None,
    heads: Sequence[Head] = (),
    *,
    batch_size: int | None = None,
    autocast_dtype: str | None = None,
    shots: bool = False,
    verify: bool = True,
    share: bool = True,
) -> list[list[Item]]:
    """Score every item of a split, for each lane.

    Generation: greedy completions, scored by the task, and the mean loss of the reference answer.
    Classification: the most likely class, and its cross-entropy. Items are batched by length; a
    batch of b items has K b rows.

    Args:
        loaded: the model, with the lanes installed if there are any.
        task: gives the examples and scores them.
        split: train | validation | test | heldout.
        lanes: adapters installed together; None: the model as it is, one lane.
        heads: the lanes' classification heads, in the same order.
        batch_size: items at once; None: as many as fit a budget of tokens for the device.
        autocast_dtype: dtype of the forward pass by autocast, or None.
        shots: put the task's few-shot examples before each prompt.
        verify: see `decode`; False decodes every token.
        share: see `decode`; False computes every row from its first token.

    Returns:
        For each lane, rows {split, id, score, tolerant, loss, completion, answer} in the order of
        the split.
    """
    rows = encode(task, loaded, split, shots)
    adapters = list(lanes or [])
    one_base(adapters)
    count = max(len(adapters), len(heads), 1)
    results: list[list[Item]] = [[{}] * len(rows) for _ in range(count)]
    device = device_of(loaded.model)

    def only(chosen: Sequence[int]) -> AbstractContextManager[None]:
        return active([adapters[k] for k in chosen] if adapters else [], [heads[k] for k in chosen] if heads else [])

    with _frozen(loaded, adapters), torch.inference_mode(), steady(adapters), Readout(loaded) as readout:
        vocabulary = getattr(loaded.model.config, "vocab_size", 1) if loaded.kind != "classification" else 1
        for indices in batches(rows, count, task.max_new_tokens or 0, batch_size, device, vocabulary):
            items = [rows[index] for index in indices]
            with autocast(device, autocast_dtype):
                if loaded.kind == "classification":
                    said = _classified(loaded, task, readout, items, count, only)
                else:
                    done = decode(loaded, readout, items, count, only, task.max_new_tokens, verify, share)
                    said = [[(_text(loaded, row), row.loss) for row in lane] for lane in done]
            for lane, answers in zip(results, said, strict=True):
                for index, item, (completion, loss) in zip(indices, items, answers, strict=True):
                    lane[index] = _item(task, split, item, completion, loss)
    return results


def batches(
    rows: Sequence[Encoded],
    lanes: int,
    new: int,
    batch_size: int | None,
    device: torch.device,
    vocabulary: int = 1,
) -> Iterator[list[int]]:
    """Yield indices of items of like length, the longest first, within a budget of memory.

    Args:
        rows: the items.
        lanes: K; each item takes K rows.
        new: tokens that may be said beyond the prompt.
        batch_size: at most this many items; None: the budget alone decides.
        device: a GPU has room for 2^17 tokens and 2^31 logits at once, a CPU for 2^13 and 2^27.
        vocabulary: logits of each label.
    """
    tokens, logits = (2**17, 2**31) if device.type == "cuda" else (2**13, 2**27)
    left = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    while left:
        width = max(len(rows[left[0]]), len(rows[left[0]].ids) + new)
        labels = max(len(rows[index].labels) for index in left)
        size = max(1, min(tokens // (width * lanes), logits // (labels * lanes * vocabulary)))
        size = size if batch_size is None else min(size, batch_size)
        yield left[:size]
        left = left[size:]


def summarise(items: Sequence[Item]) -> dict[str, float | int | None]:
    """Return the means of score, tolerant and loss over items, and their number.

    Examples:
        >>> summarise([{"score": 1, "loss": 0.5}, {"score": 0, "loss": 1.5}])
        {'score': 0.5, 'tolerant': None, 'loss': 1.0, 'n': 2}
    """
    means = {}
    for key in ("score", "tolerant", "loss"):
        values = [item[key] for item in items if item.get(key) is not None]
        means[key] = sum(values) / len(values) if values else None
    return {**means, "n": len(items)}


def _classified(
    loaded: Loaded, task: Task, readout: Readout, items: list[Encoded], count: int, only: Any
) -> list[list[tuple[str, float]]]:
    batch = collate(items * count, loaded).to(device_of(loaded.model))
    with only(range(count)):
        logits, losses = run_batch(readout, batch)
    names = [task.labels[label] for label in logits.argmax(-1).tolist()]
    pairs = list(zip(names, row_means(losses, batch.counts), strict=True))
    return [pairs[lane * len(items) : (lane + 1) * len(items)] for lane in range(count)]


def _text(loaded: Loaded, row: Decoded) -> str:
    return loaded.tokenizer.decode(row.tokens, skip_special_tokens=True).strip()


def _item(task: Task, split: str, item: Encoded, completion: str, loss: float) -> Item:
    example = item.example
    scored = task.score(example, completion)
    return {
        "split": split,
        "id": example.id,
        **scored,
        "loss": loss,
        "completion": completion,
        "answer": example.answer,
    }


@contextmanager
def _frozen(loaded: Loaded, adapters: Sequence[Adapters]) -> Iterator[None]:
    """Evaluation mode for the base and the lanes; what was in training mode is again afterwards."""
    modes = {module: module.training for module in loaded.model.modules()}
    loaded.model.eval()
    for lane in adapters:
        lane.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
