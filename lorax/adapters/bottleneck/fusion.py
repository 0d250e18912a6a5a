"""Fusion: K trained bottleneck adapters at one site, frozen, and attention over what they add (arXiv:2005.00247).

    z_k = adapter k's term for u (`bottleneck.py`)        p = softmax_k((Q u + q) . (K z_k + k))
    term = V sum_k p_k z_k                                 in the place of one adapter's term

Only Q, q, K, k and V train. V is applied to the sum, which is the sum of V z_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lorax.adapters.bottleneck.bottleneck import Bottleneck, BottleneckAdapter, SiteAdapter
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.face import Share

TENSORS = ("Q", "Q_bias", "K", "K_bias", "V")
OFF_DIAGONAL = 1e-6
"""What V has beside its ones at the start, as in `BertFusion` of the library `adapters`: constant, not drawn."""
SPREAD = 0.02
"""Standard deviation of Q and K at the start, as there."""


@dataclass(frozen=True)
class Fusion:
    """One site's adapters and the attention over them as data, the values at step 0."""

    adapters: tuple[Bottleneck, ...]
    """As trained; they stay."""
    Q: Tensor
    """(m, d), for what is read."""
    Q_bias: Tensor
    """(m,), q."""
    K: Tensor
    """(m, m), for what an adapter adds."""
    K_bias: Tensor
    """(m,), k."""
    V: Tensor
    """(m, m)"""
    report: dict[str, float] = field(default_factory=dict)
    """Facts about this site for the record."""

    @classmethod
    def of(cls, adapters: tuple[Bottleneck, ...], generator: torch.Generator) -> Fusion:
        """Return the start: Q, K ~ N(0, 0.02^2), no biases, V the identity but for 1e-6 off its diagonal."""
        m, d = adapters[0].B.shape[0], adapters[0].A.shape[1]
        Q = SPREAD * torch.randn(m, d, generator=generator, dtype=torch.float64)
        K = SPREAD * torch.randn(m, m, generator=generator, dtype=torch.float64)
        V = torch.full((m, m), OFF_DIAGONAL, dtype=torch.float64).fill_diagonal_(1.0)
        return cls(adapters, Q, Q.new_zeros(m), K, K.new_zeros(m), V)

    @property
    def shifts_base(self) -> bool:
        """The base stays as it is."""
        return False

    def check_module(self, name: str, module: nn.Module) -> None:
        """Raise UserError where an adapter does not fit the site."""
        for adapter in self.adapters:
            adapter.check_module(name, module)

    def count_trainable(self) -> int:
        """Return m d + 2 m^2 + 2 m: 3 d^2 + 2 d where m = d."""
        return sum(getattr(self, name).numel() for name in TENSORS)

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Fusion:
        """Return the same in another dtype and place."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device, dtype) for name in TENSORS}
        return replace(self, adapters=tuple(each.to(dtype, device) for each in self.adapters), **moved)

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> FusionAdapter:
        """Return the trainable module."""
        return FusionAdapter(self, dropout)

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Fusion:
        """Build the plan from `FusionAdapter.describe` and the saved tensors.

        Raises:
            UserError: no adapter is described, or a tensor is missing.
        """
        inside = described["adapters"]
        if missing := [name for name in TENSORS if name not in tensors]:
            raise UserError(f"the saved fusion lacks {missing[0]}")
        if not isinstance(inside, list) or not inside:
            raise UserError("the saved fusion describes no adapter")
        of = [{key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith(f"adapters.{i}.")}
              for i in range(len(inside))]  # fmt: skip
        adapters = tuple(Bottleneck.restore(said, own) for said, own in zip(inside, of, strict=True))
        named: dict[str, Any] = {name: tensors[name] for name in TENSORS}
        return cls(adapters, **named, report=dict(described.get("report", {})))


class FusionAdapter(SiteAdapter):
    """The attention of one run at one site over adapters that stay as they are.

    Args:
        plan: values at step 0.
        dropout: probability on what is read.
    """

    Q: nn.Parameter
    Q_bias: nn.Parameter
    K: nn.Parameter
    K_bias: nn.Parameter
    V: nn.Parameter

    def __init__(self, plan: Fusion, dropout: float = 0.0):
        super().__init__(plan.adapters[0].reads, dropout)
        for name in TENSORS:
            self.register_parameter(name, nn.Parameter(getattr(plan, name).detach().clone()))
        self.adapters = nn.ModuleList(BottleneckAdapter(each).requires_grad_(False) for each in plan.adapters)
        self.report = dict(plan.report)

    def attention(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, z): the adapters' weights, (K, ...), and what they add, (K, ..., m)."""
        z = torch.stack([_term(adapter, u) for adapter in self.adapters])
        query = F.linear(u, self.Q.to(u.dtype), self.Q_bias.to(u.dtype))
        key = F.linear(z, self.K.to(u.dtype), self.K_bias.to(u.dtype))
        return (query * key).sum(-1).softmax(0), z

    def term(self, u: Tensor) -> Tensor:
        """Return V sum_k p_k z_k."""
        p, z = self.attention(u)
        return F.linear((p[..., None] * z).sum(0).to(u.dtype), self.V.to(u.dtype))

    def value_distance(self) -> Tensor:
        """Return ||I - V||_F^2, a scalar."""
        identity = torch.eye(len(self.V), dtype=self.V.dtype, device=self.V.device)
        return (identity - self.V).square().sum()

    def describe(self) -> dict[str, Any]:
        """Return what `Fusion.restore` needs beside the tensors."""
        inside = [adapter.describe() for adapter in self.adapters if isinstance(adapter, BottleneckAdapter)]
        return {"plan": "fusion", "adapters": inside, "report": self.report}

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{len(self.adapters)} adapters, {self.Q.shape[1]} read, {len(self.V)} written, reads={self.reads}"


def _term(adapter: nn.Module, u: Tensor) -> Tensor:
    assert isinstance(adapter, BottleneckAdapter)
    return adapter.term(u)
