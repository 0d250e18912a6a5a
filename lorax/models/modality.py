"""Modality: what data, loss and answer are for one kind of model. Training and evaluation ask nothing else.

Text that a model continues, classes of a text, a number for a vector, the noise in an image: each is one
class. The training loop, the evaluation, the check of step 0 and the diagnostics use only the methods below,
so a new modality needs no branch in them. `lorax.forward.modality` says which one a model has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorax.models.registry import Loaded

ActiveLanes = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Restricts the model to some lanes: the batch then is one equal block of rows for each, in this order."""
T = TypeVar("T")


class Row(Protocol):
    """One encoded example: a row of a batch."""

    @property
    def labels(self) -> Sequence[Any]:
        """What is predicted; each label has a loss of its own."""

    @property
    def example(self) -> Any:
        """The task's example behind it."""

    def __len__(self) -> int:
        """Its size, in tokens or the like: rows of similar size are computed together."""


R = TypeVar("R", bound=Row)


@dataclass
class Batch:
    """The tensors of some rows; the rows of a lane lie next to each other. Fields with a default are for text."""

    inputs: dict[str, Tensor]
    """What the model's forward takes, by keyword."""
    targets: Tensor
    """(N, ...) what is to be predicted: a token, a class, a number, ..."""
    counts: list[int]
    """Labels of each row; sums to N."""
    positions: Tensor | None = None
    """(N,) flat indices into the grid of the model's outputs, where the labels are predicted. For models with one
    output per row: the rows' numbers, or None."""
    prefix: Tensor | None = None
    """(K, p) tokens before those in `inputs`, the same for all rows of a lane."""
    unpadded: Tensor | None = None
    """Flat indices into the grid of `input_ids` of the tokens that are no padding. None where there is too little
    padding to be worth leaving out, or two grids (seq2seq)."""
    room: int | None = None
    """Most labels that a lane has in a batch of this shape; None: as many as the batch's lanes have. `targets` and
    `positions` may go on after the labels in `counts`: what stands there only fills the shape."""

    packed: Tensor | None = None
    """The tensor of which all others are views, where there is one."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        targets = self.targets.to(device)
        positions, prefix, unpadded = moved(self.positions), moved(self.prefix), moved(self.unpadded)
        return Batch(inputs, targets, self.counts, positions, prefix, unpadded, self.room)


@dataclass(frozen=True)
class Prediction:
    """The model's answer to one example."""

    value: Any
    """The answer: a text, a class name, a number."""
    loss: float
    """Mean loss of the example's labels."""


class Modality(ABC, Generic[R]):
    """Data, loss and answer of one model.

    To be written for a new one: `encode`, `collate` and `losses`. The rest has a default.

    Args:
        loaded: the model. A skeleton without weights and tokenizer is enough for `task_kinds`.
    """

    task_kinds: ClassVar[Sequence[str]]
    """The kinds of task (`Task.kind`) that such a model can do."""
    loss_name: ClassVar[str]
    """The loss of one label in words; another loss has another name, since gradients are cached under it."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded

    @property
    def device(self) -> torch.device:
        """Where the model's weights are, and where batches go."""
        return next(self.loaded.model.parameters()).device

    @abstractmethod
    def encode(self, task: Any, split: str, shots: bool = False) -> list[R]:
        """Return the rows of one split of a task, in its order.

        Args:
            task: holds the examples.
            split: train | validation | test | heldout.
            shots: put the task's worked examples before each question, where that means something.

        Raises:
            UserError: an example that the model cannot take; names it.
        """

    @abstractmethod
    def collate(self, rows: Sequence[R], lanes: int = 1, *, share: bool = True, single_pass: bool = False) -> Batch:
        """Put rows into tensors on the model's device.

        Args:
            rows: the rows of lane 0, then those of lane 1, ...; equally many for each lane.
            lanes: K.
            share: what all rows of a lane have in common may be computed once for the lane. False where the
                rows must stay apart: dropout draws a mask for each.
            single_pass: the batch must be one call of the model.
        """

    def shapes(self, batches: Sequence[Sequence[R]], lanes: int) -> list[Any]:
        """Return few shapes that batches can be filled up to, for `fill`; [] (the default): each batch has its own.

        Args:
            batches: of the run, the rows of each lane next to each other.
            lanes: K.
        """
        return []

    def fill(self, rows: Sequence[R], lanes: int, shapes: list[Any]) -> Batch:
        """Put rows into tensors of one of these shapes, filling up with what changes no result.

        Batches of one shape are computed by the same operations, recorded once: `forward` and `losses` must then not
        depend on `Batch.counts`, and not wait for the device.

        Args:
            rows: as for `collate`.
            lanes: K.
            shapes: from `shapes`; one may be added where none is large enough.
        """
        return self.collate(rows, lanes, share=False, single_pass=True)

    def open(self) -> AbstractContextManager[object]:
        """Prepare the model for many forward passes, and put it back afterwards. Saves time only; default: nothing."""
        return nullcontext()

    def forward(self, batch: Batch) -> Tensor:
        """Run the model and return its output where labels are predicted, (N, ...): a row for each label."""
        return self.loaded.model(**batch.inputs)

    @abstractmethod
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each label, (N,), in fp32 or better.

        Args:
            output: what `forward` returned, (N, ...).
            batch: its batch.
        """

    def label_losses(self, batch: Batch) -> Tensor:
        """Return the loss of each label, (N,), where nobody wants the output itself: it need not be held whole."""
        return self.losses(self.forward(batch), batch)

    def padded(self, rows: Sequence[R]) -> int:
        """Return how many tokens, or the like, rows have when they are padded to the longest."""
        return len(rows) * max(map(len, rows))

    def read(self, output: Tensor, task: Any) -> Any:
        """Return the answer to one example; the default is the output itself, as numbers.

        Args:
            output: (n, ...) on the CPU: the output at the n labels of the example.
            task: the task.
        """
        return output.squeeze().tolist()

    def predict(self, task: Any, rows: Sequence[R], lanes: int, active: ActiveLanes) -> list[list[Prediction]]:
        """Return, for each lane, its answer to each row. The default is one forward pass.

        Args:
            task: the task.
            rows: b rows; every lane answers each of them, so the batch has K b rows.
            lanes: K.
            active: restricts the model to some lanes.
        """
        batch = self.collate([*rows] * lanes, lanes)
        with active(range(lanes)):
            output = self.forward(batch)
        losses = row_means(self.losses(output, batch), batch.counts)
        values = [self.read(part, task) for part in output.cpu().split(batch.counts)]
        answers = [Prediction(value, loss) for value, loss in zip(values, losses, strict=True)]
        return by_lane(answers, lanes)

    def score(self, task: Any, row: R, prediction: Prediction) -> dict[str, Any]:
        """Return what the record keeps of an answer: the task's scores, the loss, the answer and the reference."""
        example = row.example
        scores = task.score(example, prediction.value)
        return {**scores, "loss": prediction.loss, "completion": prediction.value, "answer": example.answer}

    def fits(self, task: Any, rows: Sequence[R], lanes: int) -> int:
        """Return how many of these rows, the largest first, may be predicted at once; at least 1."""
        return max(1, 64 // lanes)

    def regroup(self, parts: list[list[R]]) -> list[list[R]]:
        """Cut rows into other batches that cost less together; what is wanted is a sum over all labels."""
        return parts


def row_means(losses: Tensor, counts: Sequence[int]) -> list[float]:
    """Return the mean loss of each row's labels.

    Args:
        losses: (N,).
        counts: labels of each row; sums to N.
    """
    import torch

    return torch.stack([part.mean() for part in losses.split(list(counts))]).tolist()


def by_lane(values: Sequence[T], lanes: int) -> list[list[T]]:
    """Cut values into K equal blocks, one for each lane.

    Examples:
        >>> by_lane([1, 2, 3, 4], 2)
        [[1, 2], [3, 4]]
    """
    size = len(values) // lanes
    return [list(values[lane * size : (lane + 1) * size]) for lane in range(lanes)]
