"""LoRA-FA: LoRA with a frozen A."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorax.adapters.face import Step, Trainable, TrainingRule
from lorax.initializers.lora import LoRA
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("lora_fa")
@dataclass(frozen=True, kw_only=True)
class LoRAFA(LoRA):
    """Delta W = eta B A, A random and frozen, only B (m x r) trained from 0 (arXiv:2308.03303); r m values a layer.

    Its first step is LoRA's, where dL/dA = eta B^T G is 0 too. `projected` is PEFT's LoRA-FA optimiser instead: the
    gradient of B becomes dL/dB (A A^T)^-1 / eta^2, with which one step of plain SGD changes W' by -lr times the
    projection of G onto the rows of A. Side taken: plain, as published; under Adam the projection rescales columns.
    PEFT adds 1e-8 to A A^T and computes the product in bfloat16 wherever the machine has it; here neither.
    """

    projected: bool = False
    """Multiply the gradient of B by (A A^T)^-1 / eta^2, as PEFT's optimiser for LoRA-FA does."""

    def count(self, m: int, n: int) -> int:
        """Return r m."""
        return self.rank * m

    def __call__(self, probe: Probe) -> Factors:
        """Return LoRA's factors, of which B trains."""
        return replace(super().__call__(probe), trainable=frozenset({"B"}))

    def rule(self) -> TrainingRule | None:
        """Project the gradient, if asked for."""
        return _Project() if self.projected else None


class _Project(TrainingRule):
    """Multiplies every gradient of B by (A A^T)^-1 / eta^2."""

    def __init__(self) -> None:
        self._inverses: dict[str, Tensor] = {}
        """{layer: (A A^T)^-1 / eta^2, (r, r)}; A is frozen, so each is computed once."""

    def after_backward(self, step: Step, adapters: Trainable) -> None:
        """Project."""
        import torch

        for name, adapter in adapters.layer_adapters().items():
            gradient = adapter.get_parameter("B").grad
            if gradient is None:
                continue
            if name not in self._inverses:
                A = adapter.get_buffer("A").double()
                inverse = torch.linalg.inv(A @ A.mT) / (adapter.eta or 1.0) ** 2
                self._inverses[name] = inverse.to(gradient)
            gradient.copy_(gradient @ self._inverses[name])
