"""One more lane on an installation that is in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.face import LayerPlan
from lorax.adapters.handle import Adapters
from lorax.adapters.install import adapted_layer, placed
from lorax.adapters.installation import Installation
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.adapters.selection.fast_path import FastPath


def extend(
    installation: Installation,
    modules: Mapping[str, nn.Module],
    plans: Mapping[str, LayerPlan],
    dropout: float,
    info: dict[str, Any],
) -> Adapters:
    """Put another adapter beside those of an installation; nothing of them changes.

    Args:
        installation: of a base that no adapter is written into.
        modules: the plain model's layers by name, as `layers_of` finds them.
        plans: {layer name: plan}, checked against the modules.
        dropout: as `install`.
        info: as `install`.
    """
    pack = installation.pack
    lane = max(pack.installed, default=-1) + 1
    fresh: dict[str, AdaptedLayer] = {}
    beside: dict[str, LayerAdapter] = {}
    for name, plan in sorted(plans.items()):
        layer = installation.layers.get(name)
        adapter = placed(plan, modules[name]).build(fold=False, dropout=dropout, share=_Shared(layer))
        made = adapted_layer(modules[name], {lane: adapter}, pack, name)  # which refuses what cannot stand there
        if layer is None:
            fresh[name] = made
        else:
            beside[name] = adapter
    for name, adapter in beside.items():
        installation.layers[name].lanes[str(lane)] = adapter
        installation.layers[name].forget()
    pack.installed = (*pack.installed, lane)
    if fresh:
        installation.put(fresh)
        installation.on_restore(FastPath(installation.model, fresh).restore)
    return Adapters(installation, lane, "carry", dropout, info)


class _Shared:
    """Keeps one copy of each frozen tensor that a layer's lanes have in common."""

    def __init__(self, layer: AdaptedLayer | None):
        adapters = layer.all_adapters().values() if layer is not None else ()
        self.held = [dict(adapter.named_buffers()) for adapter in adapters]

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        for buffers in self.held:
            other = buffers.get(name)
            if other is not None and other.shape == tensor.shape and torch.equal(other, tensor):
                return other
        return tensor.contiguous()
