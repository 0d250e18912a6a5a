"""Gated experts: N low-rank adapters at one layer, summed with weights that a router reads from the layer's input.

    y = base + eta sum_i g_i(x) B_i A_i x        g(x) = softmax(W_r x / tau), in float32 or better

With `top_k` the k largest weights of a token are kept and divided by their sum; the others are 0. All experts may
share one A (HydraLoRA). The change depends on x, so it is no change of a weight: no merge, no export, no spectra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lorax.adapters.core import Identity
from lorax.adapters.factors import Factors
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.face import Share


@dataclass(frozen=True)
class GatedExperts:
    """One layer's experts and router as data, the values at step 0."""

    B: Tensor
    """(N, m, r)"""
    A: Tensor
    """(N, r, n), or (1, r, n) where the experts share it."""
    router: Tensor
    """W_r, (N, n)."""
    eta: float
    """The scale of B_i A_i."""
    top_k: int | None = None
    """Experts that a token uses; None: all."""
    temperature: float = 1.0
    """tau, by which the router's outputs are divided."""
    report: dict[str, float] = field(default_factory=dict)
    """Facts about this layer for the record."""

    shifts_base = False

    def check_module(self, name: str, module: nn.Module) -> None:
        """Check that the experts fit each other and the module's weight."""
        N, n = self.router.shape
        if len(self.B) != N or len(self.A) not in (1, N) or self.A.shape[2] != n:
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in self._tensors().items())
            raise UserError(f"{name}: experts and router do not fit each other: {shapes}")
        Factors(self.B[0], Identity(), self.A[0], self.eta, frozenset({"A", "B"})).check_module(name, module)

    def count_trainable(self) -> int:
        """Return N r m + N r n (or r n, of a shared A) + N n."""
        return sum(value.numel() for value in self._tensors().values())

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> GatedExperts:
        """Return the same plan in another dtype and place."""
        moved: dict[str, Any] = {key: value.to(device=device, dtype=dtype) for key, value in self._tensors().items()}
        return replace(self, **moved)

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> GatedExpertsAdapter:
        """Return the trainable module."""
        return GatedExpertsAdapter(self, dropout)

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GatedExperts:
        """Build the plan from `GatedExpertsAdapter.describe` and the saved tensors.

        Raises:
            UserError: a tensor is missing.
        """
        if missing := [key for key in ("B", "A", "router") if key not in tensors]:
            raise UserError(f"the saved experts lack {missing[0]}")
        said = (float(described["eta"]), described["top_k"], float(described["temperature"]))
        return cls(tensors["B"], tensors["A"], tensors["router"], *said, dict(described.get("report", {})))

    def _tensors(self) -> dict[str, Tensor]:
        return {"B": self.B, "A": self.A, "router": self.router}


class GatedExpertsAdapter(LayerAdapter):
    """One run's experts and router at one layer.

    Args:
        plan: values at step 0.
        dropout: probability on what the experts read, a mask for each; the router reads the input as it is.
    """

    eta: float
    not_exported = "its experts are weighted by the input, which no adapter of PEFT's is"

    def __init__(self, plan: GatedExperts, dropout: float = 0.0):
        super().__init__(dropout)
        self.B = nn.Parameter(plan.B.detach().clone())
        self.A = nn.Parameter(plan.A.detach().clone())
        self.router = nn.Parameter(plan.router.detach().clone())
        self.eta, self.top_k, self.temperature = float(plan.eta), plan.top_k, float(plan.temperature)
        self.report = dict(plan.report)
        self.masks = len(plan.B)
        self.noted: list[Tensor] | None = None
        """The router's weights over all experts, (..., N), of each differentiated call; None: not noted."""

    def gates(self, x: Tensor) -> Tensor:
        """Return g(x), (..., N), for x of shape (..., n), in the router's dtype."""
        with torch.autocast(x.device.type, enabled=False):
            weights = (F.linear(x.to(self.router.dtype), self.router) / self.temperature).softmax(-1)
        # in the backward pass, gradient checkpointing computes the same call again
        if self.noted is not None and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            self.noted.append(weights)
        if self.top_k is None:
            return weights
        largest = weights.topk(self.top_k, dim=-1)
        return torch.zeros_like(weights).scatter(
            -1, largest.indices, largest.values / largest.values.sum(-1, keepdim=True)
        )

    def output(self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None, mask: Tensor | None) -> Tensor:
        """Return base + eta sum_i g_i(x) B_i A_i x, as one product of the N r numbers g_i A_i x with all B_i.

        Args:
            x: (..., n).
            base: (..., m).
            weight: not used.
            mask: (N, ..., n), the dropout masks.
        """
        gates, x, dtype = self.gates(x).to(base.dtype), x.to(base.dtype), base.dtype
        A, (N, _, r) = self.A.to(dtype), self.B.shape
        if mask is None:
            h = F.linear(x, A.flatten(0, 1)).unflatten(-1, (-1, r))
        else:
            h = torch.stack([F.linear(x * mask[i], A[i % len(A)]) for i in range(N)], dim=-2)
        B = self.B.to(dtype).transpose(0, 1).flatten(1)
        return base + self.eta * F.linear((gates[..., None] * h).flatten(-2), B)

    def describe(self) -> dict[str, Any]:
        """Return what `GatedExperts.restore` needs beside the tensors."""
        said = {"eta": self.eta, "top_k": self.top_k, "temperature": self.temperature}
        return {"plan": "gated_experts", **said, "report": self.report}

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        N, m, r = self.B.shape
        chosen = "" if self.top_k is None else f", top {self.top_k}"
        return f"{N} experts of rank {r}, {self.A.shape[2]} to {m}{chosen}, eta={self.eta:g}, q={self.q}/256"
