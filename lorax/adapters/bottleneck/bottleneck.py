"""Bottleneck: y = z + s (f(u A^T + a) B^T + b), a trained two-layer network added to a submodule's output z.

    reads="input"    u = x, what the submodule is given: parallel to it (He et al., arXiv:2110.04366)
    reads="output"   u = z, what it gives: after it (Houlsby et al., arXiv:1902.00751)
    reads="norm"     the submodule is a layer norm, z = LN(x), and the sum goes through it again:
                     y = LN(x + s (f(z A^T + a) B^T + b)) (Pfeiffer et al., arXiv:2005.00247, on post-norm models)

With B = 0 and b = 0 the output is the base's, bit for bit. Because of f it is no change of a weight, so it cannot be
merged; where f is the identity and a = b = 0, it is a LoRA with eta = s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lorax.adapters.bottleneck.sites import is_norm, width_of
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.face import Share

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "identity": lambda h: h,
}  # fmt: skip
READS = ("input", "output", "norm")
NO_PEFT = (
    "a bottleneck adapter is no LoRA: PEFT has no such type, and the format of the library `adapters` is not written"
)


@dataclass(frozen=True)
class Bottleneck:
    """One site's adapter as data, the values at step 0."""

    A: Tensor
    """(r, d), float32 (float64 on a float64 base); d numbers are read."""
    B: Tensor
    """(m, r)."""
    a: Tensor | None
    """(r,), the bias inside f; None: no biases."""
    b: Tensor | None
    """(m,), the bias of what is added."""
    nonlinearity: str = "relu"
    """A name in NONLINEARITIES."""
    scale: float = 1.0
    """s, never trained."""
    reads: str = "output"
    """input | output | norm."""
    report: dict[str, float] = field(default_factory=dict)
    """Facts about this site for the record."""

    @property
    def shifts_base(self) -> bool:
        """The base stays as it is."""
        return False

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        named = {"A": self.A, "a": self.a, "B": self.B, "b": self.b}
        return {name: value for name, value in named.items() if value is not None}

    def check_module(self, name: str, module: nn.Module) -> None:
        """Raise UserError where the site has another width, or is no norm where one is needed."""
        m, n = width_of(name, module)
        needed, here = (self.B.shape[0], self.A.shape[1]), (m, n if self.reads == "input" else m)
        if needed != here:
            raise UserError(
                f"{name}: the adapter reads {needed[1]} and writes {needed[0]} numbers, the site {here[1]} and {m}"
            )
        if self.reads == "norm" and not is_norm(module):
            raise UserError(f"{name} is {type(module).__name__}, where the adapter needs a layer norm")

    def count_trainable(self) -> int:
        """Return r (m + d), and r + m of the biases."""
        return sum(value.numel() for value in self.tensors().values())

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Bottleneck:
        """Return the same adapter in another dtype and place."""
        moved: dict[str, Any] = {name: value.to(device, dtype) for name, value in self.tensors().items()}
        return replace(self, **moved)

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> BottleneckAdapter:
        """Return the trainable module."""
        return BottleneckAdapter(self, dropout)

    def describe(self) -> dict[str, Any]:
        """Return what `restore` needs beside the tensors."""
        said = {"nonlinearity": self.nonlinearity, "scale": self.scale, "reads": self.reads}
        return {"plan": "bottleneck", **said, "report": self.report}

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Bottleneck:
        """Build the plan from `describe` and the saved tensors.

        Raises:
            UserError: a word of the description that is not known.
        """
        for key, options in (("nonlinearity", NONLINEARITIES), ("reads", READS)):
            if described[key] not in options:
                raise UserError(f"{key}={described[key]} of a saved adapter is not known: {', '.join(options)}")
        A, B, a, b = (tensors[key] if key in "AB" else tensors.get(key) for key in "ABab")
        if A is None or B is None:
            raise UserError("the saved adapter lacks A or B")
        said = (str(described["nonlinearity"]), float(described["scale"]), str(described["reads"]))
        return cls(A, B, a, b, *said, dict(described.get("report", {})))


class SiteAdapter(LayerAdapter):
    """What stands at a site and adds `term(u)` there; subclasses say what that is.

    Args:
        reads: input | output | norm.
        dropout: probability on u.
    """

    not_exported = NO_PEFT

    def __init__(self, reads: str, dropout: float):
        super().__init__(dropout)
        self.reads = reads
        self.drops_output = reads != "input"
        self._site: tuple[nn.Module, ...] = ()

    def bind(self, module: nn.Module) -> None:
        """Remember the layer norm; in a tuple, so that it is no part of the adapter."""
        self._site = (module,)

    def term(self, u: Tensor) -> Tensor:
        """Return what is added, (..., m), for what is read, (..., d)."""
        raise NotImplementedError(f"{type(self).__name__}.term")

    def output(self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None, mask: Tensor | None) -> Tensor:
        """Return the adapted output; see the head of this file."""
        u = (x if self.reads == "input" else base).to(base.dtype)
        term = self.term(u if mask is None else u * mask)
        if self.reads != "norm":
            return base + term.to(base.dtype)
        return self._site[0].forward(x + term.to(x.dtype))


class BottleneckAdapter(SiteAdapter):
    """The trained tensors of one run at one site.

    Args:
        plan: values at step 0.
        dropout: probability on what is read.
    """

    A: nn.Parameter
    B: nn.Parameter
    a: nn.Parameter | None
    b: nn.Parameter | None

    def __init__(self, plan: Bottleneck, dropout: float = 0.0):
        super().__init__(plan.reads, dropout)
        for name in ("A", "a", "B", "b"):
            value = plan.tensors().get(name)
            self.register_parameter(name, None if value is None else nn.Parameter(value.detach().clone()))
        self.scale, self.nonlinearity = plan.scale, plan.nonlinearity
        self.report = dict(plan.report)

    def term(self, u: Tensor) -> Tensor:
        """Return s (f(u A^T + a) B^T + b)."""
        a, b = (None if bias is None else bias.to(u.dtype) for bias in (self.a, self.b))
        h = F.linear(u, self.A.to(u.dtype), a)
        return self.scale * F.linear(NONLINEARITIES[self.nonlinearity](h), self.B.to(u.dtype), b)

    def plan(self) -> Bottleneck:
        """Return the present values as data."""
        said = (self.nonlinearity, self.scale, self.reads)
        return Bottleneck(self.A, self.B, self.a, self.b, *said, dict(self.report))

    def describe(self) -> dict[str, Any]:
        """Return what `Bottleneck.restore` needs beside the tensors."""
        return self.plan().describe()

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        r, d = self.A.shape
        return f"{d} to {r} to {len(self.B)}, {self.nonlinearity}, s={self.scale:g}, reads={self.reads}, q={self.q}/256"
