"""The frozen base: no training; scored with the task's worked examples in the prompt, if it has any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from lorax.errors import UserError
from lorax.initializers.base import register

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.face import Trainable
    from lorax.probing.probe import Probe


@register("none")
@dataclass(frozen=True, kw_only=True)
class Frozen:
    """W' = W0: evaluated, never trained."""

    kind: ClassVar[str] = "none"
    trains: ClassVar[bool] = False
    changes_layers: ClassVar[bool] = False
    has_factors: ClassVar[bool] = False
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self, name: str, m: int, n: int) -> None:
        """Accept every shape."""

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

    def __call__(self, probe: Probe) -> NoReturn:
        """The frozen base has no factors."""
        raise UserError(f"layer {probe.name}: init=none trains nothing and has no factors")
