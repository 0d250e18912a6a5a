"""The frozen base: no training; scored with the task's worked examples in the prompt, if it has any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from lorax.errors import UserError
from lorax.initializers.base import register

if TYPE_CHECKING:
    from lorax.probing.probe import Probe


@register("none")
@dataclass(frozen=True, kw_only=True)
class Frozen:
    """W' = W0: evaluated, never trained."""

    kind: ClassVar[str] = "none"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self, name: str, m: int, n: int) -> None:
        """Accept every shape."""

    def count(self, m: int, n: int) -> int:
        """Return 0."""
        return 0

    def __call__(self, probe: Probe) -> NoReturn:
        """The frozen base has no factors."""
        raise UserError(f"layer {probe.name}: init=none trains nothing and has no factors")
