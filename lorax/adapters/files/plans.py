"""Kinds of layer plans, by the word that a saved adapter names them with: how each is built again from its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lorax.adapters.bottleneck.bottleneck import Bottleneck
from lorax.adapters.bottleneck.fusion import Fusion
from lorax.adapters.face import LayerPlan
from lorax.adapters.factors import Factors
from lorax.adapters.gated.experts import GatedExperts
from lorax.adapters.joint.common import CommonAndOwn
from lorax.adapters.joint.mixed import MixedFactors
from lorax.adapters.vectors.magnitude import Magnitude
from lorax.adapters.vectors.shared_matrices import SharedMatrices
from lorax.adapters.vectors.singular_values import SingularValues
from lorax.errors import UserError, near

Restore = Callable[[Mapping[str, Any], Mapping[str, Tensor]], LayerPlan]
"""restore(what `LayerAdapter.describe` said, tensors by name) -> the plan."""

_PLANS: dict[str, Restore] = {
    "bottleneck": Bottleneck.restore,
    "common_and_own": CommonAndOwn.restore,
    "factors": Factors.restore,
    "fusion": Fusion.restore,
    "gated_experts": GatedExperts.restore,
    "magnitude": Magnitude.restore,
    "mixed": MixedFactors.restore,
    "shared_matrices": SharedMatrices.restore,
    "singular_values": SingularValues.restore,
}


def register_plan(name: str, restore: Restore) -> None:
    """Make a kind of plan known, so that `lorax.load` can build it again.

    Args:
        name: its adapters' `describe` returns it under "plan"; low-rank factors need not name themselves.
        restore: builds the plan from that description and the saved tensors.
    """
    _PLANS[name] = restore


def restore_plan(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LayerPlan:
    """Return the plan of a saved layer adapter.

    Raises:
        UserError: a kind of plan that is not registered.
    """
    name = described.get("plan", "factors")
    if name not in _PLANS:
        raise UserError(f"the saved adapter is of the kind {name!r}, which is not known here: {near(name, _PLANS)}")
    return _PLANS[name](described, tensors)
