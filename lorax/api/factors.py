"""Let an initialiser look at every target layer of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorax.adapters.kinds import shape_of
from lorax.adapters.selection.rules import NO_RULES, Rules
from lorax.adapters.targets import select
from lorax.probing.probe import layer_generator
from lorax.probing.probe_layers import probe_layers

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.face import LayerPlan
    from lorax.initializers.base import Initializer
    from lorax.probing.cache import Cache
    from lorax.probing.calibration_pass import Loss
    from lorax.probing.probe import Probe


NO_RANK = "the method gives it no rank"
"""Why a layer without a plan is left out."""


@torch.no_grad()
def make_factors(
    model: nn.Module,
    initializer: Initializer,
    targets: str | Sequence[str] | Mapping[str, nn.Module] = "all-linear",
    *,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    cache: Cache | None = None,
    rules: Rules = NO_RULES,
) -> dict[str, LayerPlan]:
    """Let an initialiser look at every target layer; the model is as before afterwards.

    Args:
        model: the untouched base.
        initializer: one that has factors.
        targets: as `attach`, or {layer name: module} as found.
        loss: as `attach`.
        batches: as `attach`.
        seed: as `attach`.
        cache: as `attach`.
        rules: what `attach` takes beside the targets: which layers, and their ranks and alphas.

    Returns:
        {layer name: factors}, or another `LayerPlan`, without layers to which the method gives nothing; shapes are
        checked for all layers before any is decomposed.

    Raises:
        UserError: a layer that the method cannot serve; names layer, value and bound.
    """
    at_modules = initializer.adapts == "module"
    layers = dict(
        targets
        if isinstance(targets, Mapping)
        else select(
            model, targets, modules=at_modules, smallest=initializer.smallest, rules=rules, sites=initializer.sites
        ).chosen
    )
    if at_modules:
        return {
            name: rules.at(name, initializer).plan(name, layer, layer_generator(seed, name))
            for name, layer in layers.items()
        }
    check_shapes(initializer, {name: shape_of(module) for name, module in layers.items()}, rules)

    def look(probe: Probe) -> LayerPlan:
        return rules.at(probe.name, initializer)(probe)

    needs = initializer.needs
    return initializer.across(
        probe_layers(model, layers, look, needs, loss=loss, batches=batches, seed=seed, cache=cache)
    )


def check_shapes(initializer: Initializer, shapes: Mapping[str, tuple[int, int]], rules: Rules = NO_RULES) -> None:
    """Refuse layers that a method cannot serve, the largest first: where that one is too small, all are.

    Args:
        initializer: with its `check`.
        shapes: {layer name: (m, n)}.
        rules: ranks by layer.
    """
    for name, shape in sorted(shapes.items(), key=lambda item: -min(item[1])):
        rules.at(name, initializer).check(name, *shape)
