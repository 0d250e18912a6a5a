"""LoRA-SB: a trained core between the singular vectors of the first update of full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Ranked, positive
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("lora_sb")
@dataclass(frozen=True, kw_only=True)
class LoRASB(Ranked):
    """Delta W = eta U_r M V_r^T, only M (r x r) trained, from M = diag(S_r) / eta (arXiv:2411.19557); r^2 values.

    U S V^T = -step sign(G) is the first Adam update of full fine-tuning, G the gradient on the calibration sample. So
    W'(step 0) = W0 + (the best rank-r approximation of that update): by design not the base. U_r and V_r are
    orthonormal, so the gradient of M is the projection of G: dL/dM = eta U_r^T G V_r.

    Sides taken: the update is signed, as in the authors' code; S is divided by eta, which the code leaves out since it
    sets alpha = rank (the default here too). `step` is their learning rate over their number of warm-up steps. The
    code counts those in examples of the estimation, not in optimiser steps: 1e-4 / (0.02 * 50,000 / 3) = 3e-7 in the
    mathematics run; the default here is the first step which that schedule really takes, 1e-4 / 31.
    """

    step: float = 3e-6
    """Size of the update that the core starts at; every entry of -step sign(G) has it."""
    default_alpha: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        positive("step", self.step)

    @property
    def needs(self) -> frozenset[str]:
        """The gradient."""
        return frozenset({"gradient"})

    @property
    def starts_at_base(self) -> bool:
        """No: it starts one step away."""
        return False

    def count(self, m: int, n: int) -> int:
        """Return r^2."""
        return self.rank**2

    def __call__(self, probe: Probe) -> Factors:
        """Return frozen singular vectors of the update around its singular values."""
        import torch

        from lorax.adapters.core import Dense
        from lorax.adapters.factors import Factors
        from lorax.probing import svd

        r, k = self.rank, min(probe.shape)
        update = -torch.sign(probe.gradient.cpu() if probe.device.type == "mps" else probe.gradient).to(probe.dtype)
        decompose = svd.ends if k <= svd.DENSE and r <= svd.most_at_ends(k) else svd.top  # its spectrum is flat
        U, S, Vh = decompose(update, r).rows(slice(0, r)).to(probe.dtype)
        if float(S[0]) == 0.0:
            raise UserError(f"layer {probe.name}: its gradient is 0 on the calibration data; no direction for lora_sb")
        captured = float(S.double().square().sum() / update.double().square().sum())
        core = torch.diag(S * (self.step / self.eta))
        return Factors(
            B=U.to(probe.device),
            M=Dense(core.to(probe.device)),
            A=Vh.to(probe.device),
            eta=self.eta,
            trainable=frozenset({"M"}),
            report={"captured": captured, "start": self.step * float(S[0])},
        )
