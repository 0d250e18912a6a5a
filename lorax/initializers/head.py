"""Linear probing: the encoder stays as it is and only the fresh classification head trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from lorax.errors import UserError
from lorax.initializers.base import register

if TYPE_CHECKING:
    from lorax.probing.probe import Probe


@register("head")
@dataclass(frozen=True, kw_only=True)
class Head:
    """W' = W0; the head trains at the run's own `lr`.

    What a classification score owes to the head alone: every adapter of a classification study trains
    the same fresh head beside it, at `train.head_lr`.
    """

    kind: ClassVar[str] = "head"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self, name: str, m: int, n: int) -> None:
        """Accept every shape."""

    def count(self, m: int, n: int) -> int:
        """Return 0: the head is counted apart."""
        return 0

    def __call__(self, probe: Probe) -> NoReturn:
        """The frozen encoder has no factors."""
        raise UserError(f"layer {probe.name}: init=head trains the classification head alone and has no factors")
