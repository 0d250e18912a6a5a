"""Full fine-tuning, the arm that every adapter is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from lorax.errors import UserError
from lorax.initializers.base import register

if TYPE_CHECKING:
    from lorax.probing.probe import Probe


@register("full")
@dataclass(frozen=True, kw_only=True)
class Full:
    """Train W' itself: all parameters of the model, or the layers that `targets` names."""

    kind: ClassVar[str] = "full"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self, name: str, m: int, n: int) -> None:
        """Accept every shape."""

    def count(self, m: int, n: int) -> int:
        """Return m n (a bias comes on top)."""
        return m * n

    def __call__(self, probe: Probe) -> NoReturn:
        """Full fine-tuning has no factors."""
        raise UserError(f"layer {probe.name}: init=full trains the weight itself and has no factors")
