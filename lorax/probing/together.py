"""Layers of one shape on a GPU are decomposed together: the first that asks has the others' computed beside its own.

What was computed for a layer waits in main memory until the layer asks. A layer that leaves without asking for it shows
that they ask for different things; from then on each is computed alone.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch
from torch import Tensor

from lorax.probing import route
from lorax.probing.cache import Parts
from lorax.probing.svd import Triplets

MOST = 32  # layers at once
SHARE = 4  # of the card's free memory a quarter
ON_CPU = 2**30  # bytes, where a GPU's way is forced on a CPU
COPIES = 5  # of a Gram matrix: itself, its eigenvectors, what the solver works with


class Layer(Protocol):
    """What is asked of a layer (`lorax.probing.probe.Probe`)."""

    name: str
    shape: tuple[int, int]
    device: torch.device

    def lacks(self, kind: route.Kind) -> bool:
        """Whether a decomposition would have to be computed."""

    def read(self) -> Tensor:
        """Return W0, (m, n), which is not kept."""

    def entry(self, triplets: Triplets) -> Parts:
        """Return triplets as they are cached."""


class Together:
    """The layers that one initialiser looks at."""

    def __init__(self) -> None:
        self._waiting: dict[str, Layer] = {}
        self._found: dict[tuple[str, route.Kind], Parts] = {}
        self._alone = False
        self._lock = threading.Lock()  # several layers may ask at once

    def add(self, layer: Layer) -> None:
        """Have a layer's decompositions computed beside those of others, until it is looked at."""
        self._waiting[layer.name] = layer

    def begin(self, name: str) -> None:
        """Note that a layer is looked at from now on."""
        self._waiting.pop(name, None)

    def end(self, name: str) -> None:
        """Note that a layer will ask for nothing more."""
        with self._lock:
            for key in [key for key in self._found if key[0] == name]:
                del self._found[key]
                self._alone = True

    def entry(self, layer: Layer, way: str, kind: route.Kind) -> Parts:
        """Return a layer's decomposition by the Gram matrix."""
        with self._lock:
            if (layer.name, kind) not in self._found:
                group = [layer, *self._others(layer, kind)]
                triplets = route.decompose(way, kind, [one.read for one in group])
                for one, found in zip(group, triplets, strict=True):
                    self._found[one.name, kind] = one.entry(found)
            return self._found.pop((layer.name, kind))

    def _others(self, layer: Layer, kind: route.Kind) -> list[Layer]:
        if self._alone:
            return []
        alike = [one for one in list(self._waiting.values()) if (one.shape, one.device) == (layer.shape, layer.device)]
        room, others = fitting(layer.shape, layer.device) - 1, []
        for one in alike:
            if len(others) >= room:
                break
            if (one.name, kind) not in self._found and one.lacks(kind):
                others.append(one)
        return others


def fitting(shape: tuple[int, int], device: torch.device) -> int:
    """Return how many layers of a shape are decomposed at once."""
    free = torch.cuda.mem_get_info(device)[0] // SHARE if device.type == "cuda" else ON_CPU
    return max(1, min(MOST, free // (COPIES * 8 * min(shape) ** 2)))
