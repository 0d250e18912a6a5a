"""The frozen base: no training; scored with the task's worked examples in the prompt, if it has any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorax.initializers.base import Factorless
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.face import Trainable


@register("none")
@dataclass(frozen=True, kw_only=True)
class Frozen(Factorless):
    """W' = W0: evaluated, never trained."""

    kind: ClassVar[str] = "none"
    trains: ClassVar[bool] = False
    changes_layers: ClassVar[bool] = False

    def count(self, m: int, n: int) -> int:
        """Return 0."""
        return 0

    def install(
        self,
        model: nn.Module,
        targets: str | Sequence[str],
        head: Sequence[str] | None = None,
        info: dict[str, Any] | None = None,
    ) -> Trainable:
        """Freeze the model and return the handle."""
        from lorax.adapters.baselines import Frozen

        return Frozen(model, info)
