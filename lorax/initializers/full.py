"""Full fine-tuning, with which every adapter is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorax.initializers.base import Factorless
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.face import Trainable


@register("full")
@dataclass(frozen=True, kw_only=True)
class Full(Factorless):
    """Train W' itself: all parameters of the model, or the layers that `targets` names."""

    kind: ClassVar[str] = "full"

    def count(self, m: int, n: int) -> int:
        """Return m n (a bias comes on top)."""
        return m * n

    def install(
        self,
        model: nn.Module,
        targets: str | Sequence[str],
        head: Sequence[str] | None = None,
        info: dict[str, Any] | None = None,
    ) -> Trainable:
        """Make all parameters trainable, or the named layers' own; return the handle."""
        from lorax.adapters.baselines import FullModel
        from lorax.adapters.install import find_targets

        layers = None if targets == "all-linear" else find_targets(model, targets, head)
        return FullModel(model, layers, info)
