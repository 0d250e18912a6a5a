"""The batches that an initialiser looks at gradients or activations on: the run's own first ones, or held-out ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.models.modality import Batch
    from lorax.models.registry import Loaded
    from lorax.probing.gradient import Loss
    from lorax.tasks import Task


def gradient_batches(
    task: Task, loaded: Loaded, config: RunConfig, share: bool = True
) -> tuple[Loss, list[dict[str, Any]]]:
    """Return (loss, batches) for `layer_gradients` and `layer_activations`.

    With `calibration=train` these are the batches that the first steps of the run will see, so the gradient
    that initialises is the one the first steps follow; `heldout` takes examples that serve nothing else.
    The loss is the mean over answer tokens, with their number as weight, in full precision. Small batches are
    joined, and what all prompts of a batch begin with is computed once; both are exact. The fresh head is the
    one that this run starts with, not that of another run of its pack.

    Args:
        task: gives the examples.
        loaded: the untouched model and its tokenizer.
        config: seed, batch size and number of batches.
        share: False computes every prompt whole and every batch by itself, the slow way to the same gradients.

    Raises:
        UserError: the split is empty.
    """
    from lorax.forward.batch import order
    from lorax.forward.modality import modality_of
    from lorax.forward.padding import token_counts
    from lorax.models.fresh_head import init_head

    modality = modality_of(loaded)
    split = "train" if config.calibration == "train" else "heldout"
    rows = modality.encode(task, split)
    if not rows:
        raise UserError(f"calibration={config.calibration}: task {task.name} has no {split} examples")
    init_head(loaded.model, loaded.head, config.seed)
    count = config.train["calibration_batches"]
    parts = [[rows[index] for index in indices] for indices in order(config.seed, len(rows), config.batch_size, count)]

    def loss(model: Any, fields: dict[str, Any]) -> tuple[Any, int]:
        batch = _from_fields(fields)
        with modality.open():
            losses = modality.label_losses(batch)
        return losses.mean(), losses.numel()

    # Gradients are cached under this text and the batches.
    loss.digest = f"mean {modality.loss_name} of the labels, version 1"  # type: ignore[attr-defined]
    loss.token_counts = lambda fields: token_counts(*(fields[key] for key in ("inputs", "positions", "counts")))  # type: ignore[attr-defined]
    parts = modality.regroup(parts) if share else parts
    if (bound := config.train.get("max_tokens")) is not None:
        parts = [piece for part in parts for piece in _pieces(part, lambda rows: modality.padded(rows) <= bound)]
    return loss, [_to_fields(modality.collate(part, share=share, single_pass=True)) for part in parts]


def _pieces(rows: list[Any], fits: Callable[[list[Any]], bool]) -> list[list[Any]]:
    """Cut a batch into pieces that fit, rows of like length together; what is wanted is a sum over all labels.

    Examples:
        >>> _pieces(["abc", "a", "ab"], lambda rows: len(rows) * max(map(len, rows)) <= 4)
        [['a', 'ab'], ['abc']]
    """
    pieces: list[list[Any]] = []
    for row in sorted(rows, key=len):
        if pieces and fits([*pieces[-1], row]):
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces if len(pieces) > 1 else [rows]


def _to_fields(batch: Batch) -> dict[str, Any]:
    """Return what decides a batch's loss, by name.

    Names and values are part of the key under which its gradient is cached, so `Batch.unpadded` keeps the name that it
    had when the first gradients were cached, `live`.
    """
    fields = {name: getattr(batch, name) for name in ("inputs", "positions", "targets", "counts", "prefix")}
    return fields | {"live": batch.unpadded}


def _from_fields(fields: dict[str, Any]) -> Batch:
    from lorax.models.modality import Batch

    return Batch(**{name: value for name, value in fields.items() if name != "live"}, unpadded=fields["live"])
