"""Linear probing: the encoder stays as it is and only the fresh classification head trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorax.initializers.base import Factorless
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.face import Trainable


@register("head")
@dataclass(frozen=True, kw_only=True)
class Head(Factorless):
    """W' = W0; the head trains at the run's own `lr`.

    What a classification score owes to the head alone: every adapter of a classification study trains
    the same fresh head beside it, at `train.head_lr`.
    """

    kind: ClassVar[str] = "head"
    changes_layers: ClassVar[bool] = False

    def count(self, m: int, n: int) -> int:
        """Return 0: the head is counted apart."""
        return 0

    def install(
        self,
        model: nn.Module,
        targets: str | Sequence[str],
        head: Sequence[str] | None = None,
        info: dict[str, Any] | None = None,
    ) -> Trainable:
        """Freeze the model, but for the head that the caller puts on it; return the handle."""
        from lorax.adapters.baselines import HeadOnly

        return HeadOnly(model, info)
