"""Layers that the loss on the calibration batches does not reach: refused, or left out where no one named them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from torch import nn

from lorax.adapters.selection.reached import of_no_reached_kind
from lorax.errors import UserError
from lorax.probing.calibration_pass import first_few

UNREACHED = "the loss on the calibration batches does not reach it"
UNSEEN = "no input of it is seen on the calibration batches"
Made = TypeVar("Made")


class Unreached(UserError):
    """The calibration pass does not reach some of the targets.

    Args:
        names: which.
        what: what does not reach them.
        reason: why such a layer is left out.
    """

    def __init__(self, names: Collection[str], what: str = "the loss does not reach", reason: str = UNREACHED):
        super().__init__(f"calibration: {what} {first_few(list(names))}; leave them out of targets")
        self.names, self.reason = list(names), reason


def without_unreached(
    make: Callable[[Mapping[str, nn.Module]], Made], chosen: Mapping[str, nn.Module], named: bool
) -> tuple[Made, dict[str, str]]:
    """Return make(chosen), or, where the loss does not reach some of them, make(the others).

    An unused pooler is left out; an expert whose like is reached is not, since other batches may reach it.

    Args:
        make: raises `Unreached`.
        chosen: {layer name: module}.
        named: the layers were named: none is left out.

    Returns:
        What was made, and {name left out: reason}.

    Raises:
        Unreached: the loss reaches none of them, or not all that were named, or a layer but not its like.
    """
    try:
        return make(chosen), {}
    except Unreached as error:
        reached = chosen.keys() - set(error.names)
        if named or not reached or len(of_no_reached_kind(error.names, reached)) < len(error.names):
            raise
        reason = error.reason
    others = {name: module for name, module in chosen.items() if name in reached}
    return make(others), dict.fromkeys(chosen.keys() - reached, reason)
