"""CommonAndOwn: two low-rank terms at a layer, one that all tasks train as one and one of the task's own.

    Delta W_t = eta (B_s A_s + B_t A_t) = eta [B_s, B_t] [A_s ; A_t]

The lanes' common terms are tied after they are installed: `lorax.adapters.tying.tie`, tensors `COMMON`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.core import Identity
from lorax.adapters.face import LayerPlan, Share
from lorax.adapters.factors import Factors
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.errors import UserError

TERMS = ("common", "own")


@dataclass(frozen=True)
class CommonAndOwn:
    """The plan: the factors of both terms."""

    common: Factors
    own: Factors

    shifts_base = False

    @classmethod
    def of(cls, name: str, common: LayerPlan, own: LayerPlan) -> CommonAndOwn:
        """Return the plan of a layer from what one method returned for each of the terms.

        Raises:
            UserError: an adapter that is no product B A added to the untouched weight.
        """
        for plan in (common, own):
            if not isinstance(plan, Factors) or plan.shifts_base or not isinstance(plan.M, Identity):
                raise UserError(
                    f"layer {name}: share=common adds two terms B A to the base; a method with B = 0 at its start has "
                    "such terms: lora"
                )
        assert isinstance(common, Factors) and isinstance(own, Factors)
        return cls(common, own)

    def check_module(self, name: str, module: nn.Module) -> None:
        """Check that both terms fit the module's weight."""
        for plan in (self.common, self.own):
            plan.check_module(name, module)

    def count_trainable(self) -> int:
        """Return the numbers of both terms: 2 r (m + n) of LoRA's."""
        return self.common.count_trainable() + self.own.count_trainable()

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> CommonAndOwn:
        """Return the same plan in another dtype and place."""
        return CommonAndOwn(self.common.to(dtype, device), self.own.to(dtype, device))

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> CommonAndOwnAdapter:
        """Return the trainable module."""
        return CommonAndOwnAdapter(self, dropout)

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CommonAndOwn:
        """Build the plan from `CommonAndOwnAdapter.describe` and the saved tensors."""
        own_names = {
            term: {key.removeprefix(f"{term}."): value for key, value in tensors.items() if key.startswith(f"{term}.")}
            for term in TERMS
        }
        return cls(*(Factors.restore(described[term], own_names[term]) for term in TERMS))


class CommonAndOwnAdapter(LayerAdapter):
    """One task's two terms at one layer, in plain operations."""

    eta: float

    def __init__(self, plan: CommonAndOwn, dropout: float):
        super().__init__(dropout)
        self.eta = float(plan.own.eta)
        self.common, self.own = plan.common.build(), plan.own.build()
        self.report = dict(plan.own.report)

    def output(
        self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return base + eta (x A_s^T B_s^T + x A_t^T B_t^T); one mask for both terms."""
        return self.own.output(x, self.common.output(x, base, weight, mask), weight, mask)

    def delta(self, weight: Callable[[], Tensor] | None = None) -> Tensor:
        """Return the sum of both terms, (m, n)."""
        return self.common.delta() + self.own.delta()

    def factors(self) -> Factors:
        """Return both terms as one, of twice the rank."""
        common, own = self.common.factors(), self.own.factors()
        B, A = torch.cat([common.B, own.B], 1), torch.cat([common.A, own.A])
        return Factors(B, Identity(), A, self.eta, own.trainable, report=dict(self.report))

    def describe(self) -> dict[str, Any]:
        """Return what `CommonAndOwn.restore` needs beside the tensors."""
        terms = {"common": self.common.describe(), "own": self.own.describe()}
        return {"plan": "common_and_own", "eta": self.eta, **terms, "report": self.report}
