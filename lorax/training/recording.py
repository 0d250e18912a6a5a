"""Recording: a recorder for as long as it works; what cannot be recorded is done as it comes, and said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from lorax.forward.recorders import Recorder


class Recording:
    """Records pieces of work until one fails.

    Args:
        recorder: records them; None: nothing is recorded.
    """

    def __init__(self, recorder: Recorder | None):
        self.recorder = recorder

    def of(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what does the work again: recorded, or as it is where that fails.

        Args:
            work: see `Recorder.record`.
        """
        if self.recorder is None:
            return work
        try:
            return self.recorder.record(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.recorder = None
            why = str(error).strip().partition("\n")[0][:150]
            warnings.warn(f"a step could not be recorded ({why}); steps run eager", stacklevel=2)
            return work
