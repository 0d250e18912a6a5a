"""The batches that an initialiser looks at gradients or activations on: the run's own first ones, or held-out ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig
from lorax.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def calibration(task: Any, loaded: Any, config: RunConfig, place: Any, share: bool = True) -> tuple[Any, list[Any]]:
    """Return (loss, batches) for `layer_gradients` and `layer_activations`.

    With `calibration=train` these are the batches that the first steps of the run will see, so the
    gradient that initialises is the one the first steps follow; `heldout` takes examples of no other use.
    The loss is the mean over answer tokens, with their number as weight, in full precision; small batches are joined,
    and what all prompts of one begin with is computed once (its gradients add up in it: exact). A fresh
    head is the one that this run starts with, not that of another lane of its pack.

    Args:
        task: gives the examples.
        loaded: the untouched model and its tokenizer.
        config: seed, batch size and number of batches.
        place: device.
        share: False computes every prompt whole and every batch by itself (the slow twin).

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
    loss.token_counts = token_counts
    parts = [[rows[index] for index in indices] for indices in chosen]
    parts = _joined(parts, loaded) if share else parts
    batches = [vars(lay_out(part, loaded, share=share, cached=False)) for part in parts]
    return loss, batches


def token_counts(batch: Mapping[str, Any]) -> list[Tensor]:
    """Return, for each grid of input tokens, how many examples' tokens each position stands for, (rows, tokens).

    Padding counts 0, a token 1, and a token of a beginning that R examples share R: the counts do not depend on how
    examples are laid out. Where no mask says so, an example ends where its last label is predicted.

    Args:
        batch: the fields of a `Batch` whose beginnings are not cached (`prefix` is None).

    Returns:
        One tensor; for an encoder-decoder the encoder's and the decoder's.
    """
    import torch

    inputs, positions = batch["inputs"], batch["positions"]
    mask = inputs.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        if "decoder_input_ids" not in inputs:
            return [mask]
        decoder = torch.zeros_like(inputs["decoder_input_ids"])
        return [mask, decoder.flatten().index_fill(0, positions, 1).view_as(decoder)]
    rows, width = inputs["input_ids"].shape
    ends = positions[torch.tensor(batch["counts"], device=positions.device).cumsum(0) - 1]
    if mask is None:
        return [torch.arange(width, device=ends.device) <= (ends % width)[:, None]]
    seen = mask[:, 0].flatten(0, 1)[ends]  # what an example's last token sees is the example
    return [torch.zeros(rows, width, device=ends.device).index_add(0, ends // width, seen.float())]


def _joined(parts: list[list[Any]], loaded: Any) -> list[list[Any]]:
    """Join neighbouring batches while they stay one sequence's worth of tokens and take no more than apart.

    The gradient weighs every batch by its labels, so it does not matter how they are cut; products of a hundred
    tokens take twice the time a token of products of five hundred, and what prompts begin with is computed less often.
    """
    from lorax.forward.prefix_tree import LONGEST, size

    joined: list[list[Any]] = []
    for part in parts:
        together = [*joined[-1], *part] if joined else []
        if together and size(together, loaded) <= min(LONGEST, size(joined[-1], loaded) + size(part, loaded)):
            joined[-1] = together
        else:
            joined.append(part)
    return joined
