"""The calibration data of all layers: from one pass over the batches, which runs when the first layer asks."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorax.errors import UserError
from lorax.probing.activations import SecondMoments
from lorax.probing.calibration_pass import Loss, one_pass
from lorax.probing.fingerprint import digest, key_of, remembered
from lorax.probing.gradient import GradientSums
from lorax.probing.parallel import all_threads
from lorax.probing.ranks import several, together
from lorax.probing.svd import finite


class CalibrationData(Protocol):
    """What a probe asks for beyond the weight."""

    @property
    def gradient_digest(self) -> str | None:
        """What the gradients depend on, or None where that is not known: they are then not cached."""
        ...

    def gradient(self, name: str) -> Tensor:
        """Return G of a layer, (m, n)."""
        ...

    def activations(self, name: str) -> Tensor:
        """Return X^T X / T of a layer's inputs, (n, n)."""
        ...


@dataclass(frozen=True)
class GivenMatrices:
    """Calibration data without a pass: matrices that the caller has, such as random ones."""

    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    """{layer name: (m, n)}."""
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    """{layer name: (n, n)}."""
    gradient_digest: str | None = None

    def gradient(self, name: str) -> Tensor:
        """Return G of a layer, (m, n)."""
        return self.gradients[name]

    def activations(self, name: str) -> Tensor:
        """Return X^T X / T of a layer's inputs, (n, n)."""
        return self.moments[name]


class Calibration:
    """Gradients and input second moments of all layers, from one pass over the batches.

    The pass runs when the first of them is asked for, and collects what `needs` holds: "gradient", "activations" or
    both; for activations alone it is a forward pass without gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Module],
        loss: Loss | None,
        batches: Iterable[Any] | None,
        needs: frozenset[str] = frozenset({"gradient"}),
    ) -> None:
        """Remember what to run; nothing runs yet."""
        self._model, self._targets, self._loss = model, targets, loss
        self._batches = None if batches is None else list(batches)
        self._needs = needs
        self._gradients: dict[str, Tensor] | None = None
        self._activations: dict[str, Tensor] | None = None
        self._failure: Exception | None = None
        self._lock = threading.Lock()  # several layers may ask at once; one of them runs the pass

    def gradient(self, name: str) -> Tensor:
        """Return G of a layer, (m, n), on the CPU."""
        return self._collected("gradient", name)

    def activations(self, name: str) -> Tensor:
        """Return X^T X / T of a layer's inputs, (n, n), on the CPU."""
        return self._collected("activations", name)

    def release(self, name: str) -> None:
        """Forget a layer's matrices."""
        for collected in (self._gradients, self._activations):
            if collected is not None:
                collected.pop(name, None)

    @cached_property
    def gradient_digest(self) -> str | None:
        """What the gradients depend on, or None where that is not known.

        A cached decomposition of a gradient is found by a digest of all the model's values, the batches and the loss.
        A loss of the caller's needs the attribute `digest`; without it its gradients are not cached.
        """
        if several():  # they depend on the batches of other processes, which may find them in their cache or not
            return None
        named = "labels" if self._loss is None else getattr(self._loss, "digest", None)
        if named is None or self._batches is None:
            return None
        try:
            batches = digest(self._batches)
        except TypeError:
            return None
        values = (*self._model.named_parameters(), *self._model.named_buffers())
        state = [(key, remembered(value)) for key, value in values]
        kernel = getattr(getattr(self._model, "config", None), "_attn_implementation", None)
        place = next(self._model.parameters()).device.type
        return key_of(named, batches, state, kernel, place, torch.is_autocast_enabled(place))

    def _collected(self, what: str, name: str) -> Tensor:
        if what not in self._needs:
            raise UserError(not_asked_for(name, what))
        with self._lock:
            if self._failure is not None:  # not again for the next layer: all ranks make the same calls
                raise self._failure
            if self._gradients is None and self._activations is None:
                try:
                    with all_threads():
                        self._run()
                except Exception as error:
                    self._failure = error
                    raise
            collected = self._gradients if what == "gradient" else self._activations
            assert collected is not None
        return finite(collected[name], f"layer {name}: its {what} on the calibration data")

    def _run(self) -> None:
        gradients = GradientSums(self._targets) if "gradient" in self._needs else None
        moments = SecondMoments(self._targets) if "activations" in self._needs else None
        with together(list(self._targets)):
            one_pass(self._model, self._loss, self._given(), gradients, moments)
        if several():
            for sums in (gradients, moments):
                if sums is not None:
                    sums.add_ranks()
        self._gradients = None if gradients is None else gradients.means()
        self._activations = None if moments is None else moments.means()

    def _given(self) -> list[Any]:
        if self._batches is None:
            if "gradient" in self._needs:
                raise UserError("this init looks at gradients: give batches=..., and loss=... or labels in them")
            raise UserError("this init looks at activations: give batches=...")
        return self._batches


def not_asked_for(name: str, what: str) -> str:
    """Return the message for a method that looks at what it did not announce."""
    return f"layer {name}: {what} looked at but not announced; the method's `needs` must hold {what!r}"
