"""The batches behind gradient-based initialisation: the run's own first ones, or held-out ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.forward.encode import Encoded
    from lorax.models.registry import Loaded
    from lorax.probing.gradient import Loss
    from lorax.tasks import Task


def gradient_batches(
    task: Task, loaded: Loaded, config: RunConfig, share: bool = True
) -> tuple[Loss, list[dict[str, Any]]]:
    """Return (loss, batches) for `layer_gradients`.

    With `calibration=train` these are the batches that the first steps of the run will see, so the gradient
    that initialises is the one the first steps follow; `heldout` takes examples that serve nothing else.
    The loss is the mean over answer tokens, with their number as weight, in full precision. Small batches are
    joined, and what all prompts of a batch begin with is computed once; both are exact. A fresh head is the one
    that this run starts with, not that of another lane of its pack.

    Args:
        task: gives the examples.
        loaded: the untouched model and its tokenizer.
        config: seed, batch size and number of batches.
        share: False computes every prompt whole and every batch by itself, the slow way to the same gradients.

    Raises:
        UserError: the split is empty.
    """
    from lorax.forward.encode import Batch, encode, order
    from lorax.forward.prefix_tree import lay_out
    from lorax.forward.readout import Readout, run_batch
    from lorax.models.hf import init_head

    split = "train" if config.calibration == "train" else "heldout"
    rows = encode(task, loaded, split)
    if not rows:
        raise UserError(f"calibration={config.calibration}: task {task.name} has no {split} examples")
    init_head(loaded.model, loaded.head, config.seed)
    count = config.train["calibration_batches"]
    chosen = order(config.seed, len(rows), config.batch_size, count)

    def loss(model: Any, batch: Any) -> tuple[Any, int]:
        with Readout(loaded) as readout:
            _, losses = run_batch(readout, Batch(**batch))
        return losses.mean(), losses.numel()

    loss.digest = "mean cross-entropy of the labels, version 1"  # lets the gradient be kept between runs
    parts = [[rows[index] for index in indices] for indices in chosen]
    parts = join_small(parts, loaded) if share else parts
    return loss, [vars(lay_out(part, loaded, share=share, cached=False)) for part in parts]


def join_small(parts: list[list[Encoded]], loaded: Loaded) -> list[list[Encoded]]:
    """Join neighbouring batches while that takes no more tokens and they stay within `prefix_tree.LONGEST`.

    Every batch weighs in the gradient by its number of labels, so it does not matter how the examples are cut.
    Fewer, larger products are faster: those of a hundred tokens take twice the time per token of those of five
    hundred. And what all prompts begin with is computed less often.
    """
    from lorax.forward.prefix_tree import LONGEST, size

    joined: list[list[Encoded]] = []
    for part in parts:
        together = [*joined[-1], *part] if joined else []
        if together and size(together, loaded) <= min(LONGEST, size(joined[-1], loaded) + size(part, loaded)):
            joined[-1] = together
        else:
            joined.append(part)
    return joined
