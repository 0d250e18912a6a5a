"""Text that gets a number: one output, and the squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lorax.forward.classification import ClassifiedText

if TYPE_CHECKING:
    from lorax.models.modality import Batch
    from lorax.tasks.base import Example


class NumberedText(ClassifiedText):
    """The head's one output is the number, in standard deviations of the training numbers from their mean.

    So a fresh head begins where it should; the loss is in the same units (1: what the mean alone gets).
    """

    task_kinds = ("regression",)
    loss_name = "squared error"

    def texts(self, example: Example) -> tuple[Any, str]:
        """Return the text and its standardised number."""
        return self.input_of(example), repr(example.meta["standardised"])

    def label_of(self, written: str) -> int:
        """Return a number's bits as a 32-bit float: batches are whole numbers, so that one copy takes them all."""
        return int(np.float32(written).view(np.int32))

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the squared error of each label, (N,), from outputs (N, 1)."""
        numbers = batch.targets.to(torch.int32).view(torch.float32)
        wide = output if output.dtype == torch.float64 else output.float()
        return (wide.squeeze(-1) - numbers.to(wide.dtype)).square()

    def read(self, output: Tensor, task: Any) -> Any:
        """Return the number, on the task's own scale.

        Args:
            output: (1, 1).
            task: knows mean and standard deviation.
        """
        return round(task.center + task.spread * float(output.squeeze()), 6)
