"""A probe of every layer, for an initialiser that looks at one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from lorax.probing import CALIBRATED
from lorax.probing.cache import Cache
from lorax.probing.calibration import Calibration
from lorax.probing.calibration_pass import Loss
from lorax.probing.parallel import side_by_side
from lorax.probing.probe import Probe
from lorax.probing.together import Together

T = TypeVar("T")


def probe_layers(
    model: nn.Module,
    targets: dict[str, nn.Module],
    look: Callable[[Probe], T],
    needs: frozenset[str] = frozenset(),
    *,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    cache: Cache | None = None,
) -> dict[str, T]:
    """Return {layer name: look(its probe)}; what a probe computed is released once `look` has returned.

    Args:
        model: the untouched base.
        targets: {layer name: module}.
        look: an initialiser; called for several layers at once on a CPU with several cores.
        needs: what it will look at; "gradient" and "activations" make the calibration pass available.
        loss: as `gradient.layer_gradients`.
        batches: calibration batches.
        seed: of the layers' generators.
        cache: where decompositions are kept; None computes them anew, to the same bits.
    """
    calibration = Calibration(model, targets, loss, batches, needs) if needs & CALIBRATED else None
    together = Together()
    probes = {
        name: Probe(name, module, seed=seed, cache=cache, calibration=calibration, together=together)
        for name, module in targets.items()
    }
    for probe in probes.values():
        together.add(probe)

    def look_at(name: str) -> T:
        together.begin(name)
        try:
            return look(probes.pop(name))
        finally:
            together.end(name)
            if calibration is not None:
                calibration.release(name)

    return side_by_side(targets, look_at)
