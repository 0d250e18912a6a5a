"""What the bottleneck methods have in common: their fields, counts and first values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from lorax.errors import UserError
from lorax.initializers.base import Method, one_of, positive

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorax.adapters.bottleneck.bottleneck import Bottleneck
    from lorax.architecture.blocks import Block
    from lorax.probing.probe import Probe

NONLINEARITIES = ("relu", "gelu", "silu", "tanh", "identity")


@dataclass(frozen=True, kw_only=True)
class BottleneckMethod(Method):
    """y = z + s (f(u A^T + a) B^T + b) at sites of every transformer block; subclasses say which, and what u is.

    Side taken: A is Kaiming-uniform, U(-1/sqrt d, 1/sqrt d), and a, B, b are zero (`init_weights="mam_adapter"` of the
    library `adapters`), so that step 0 is exactly the base. Houlsby's own normal draws of size 1e-2 and the library's
    default of 2e-2 for A and B are near the base only.
    """

    rank: int = 8
    """r, the width of the bottleneck."""
    reduction: float | None = None
    """r = d / reduction, rounded down, in place of the rank: the papers' way to give it."""
    nonlinearity: str = "relu"
    """f: relu | gelu | silu | tanh | identity."""
    scale: float = 1.0
    """s."""
    bias: bool = True
    """Whether a and b are there, and train."""

    adapts: ClassVar[str] = "module"
    changes_weight: ClassVar[bool] = False
    default_scale: ClassVar[float] = 1.0
    reads: ClassVar[str] = "output"

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"rank={self.rank}: a positive whole number is needed")
        if self.reduction is not None:
            positive("reduction", self.reduction)
            if self.reduction < 1:
                raise UserError(f"reduction={self.reduction}: at least 1 is needed; r = d / reduction is a bottleneck")
        positive("scale", self.scale)
        one_of("nonlinearity", self.nonlinearity, NONLINEARITIES)
        if not isinstance(self.bias, bool):
            raise UserError(f"bias={self.bias}: true or false is needed")

    @property
    def smallest(self) -> int:
        """The rank: a bottleneck is no wider than what it reads and writes."""
        return self.rank if self.reduction is None else 1

    @property
    def idle(self) -> frozenset[str]:
        """The rank, where the reduction gives it."""
        return frozenset() if self.reduction is None else frozenset({"rank"})

    @property
    def lr_factor(self) -> float:
        """Under Adam a step of lr moves the output by about lr s, so s acts like a learning rate."""
        return self.default_scale / self.scale

    def width(self, d: int) -> int:
        """Return r at a site that reads d numbers."""
        return self.rank if self.reduction is None else max(1, math.floor(d / self.reduction))

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError where the rank exceeds what a site that reads n and writes m numbers has."""
        if self.width(n) > min(m, n):
            raise UserError(f"layer {name}: rank={self.width(n)} exceeds {min(m, n)}, which the site reads or writes")

    def count(self, m: int, n: int) -> int:
        """Return r (m + n), and r + m with biases, of a site that reads n and writes m numbers."""
        r = self.width(n)
        return r * (m + n) + (r + m if self.bias else 0)

    def __call__(self, probe: Probe) -> NoReturn:
        """Refuse: these are no change of a layer's weight."""
        raise UserError(f"layer {probe.name}: init={self.name} stands at submodules, and changes no weight")

    def reads_at(self, module: nn.Module) -> str:
        """Return what the adapter reads at a submodule: input | output | norm."""
        return self.reads

    def plan(self, name: str, module: nn.Module, generator: torch.Generator) -> Bottleneck:
        """Return the adapter at a submodule, A drawn from `generator`."""
        import torch

        from lorax.adapters.bottleneck.bottleneck import Bottleneck
        from lorax.adapters.bottleneck.sites import width_of

        m, n = width_of(name, module)
        reads = self.reads_at(module)
        d = n if reads == "input" else m
        self.check(name, m, d)
        r = self.width(d)
        A = torch.empty(r, d, dtype=torch.float64).uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=generator)
        a, b = (A.new_zeros(r), A.new_zeros(m)) if self.bias else (None, None)
        return Bottleneck(A, A.new_zeros(m, r), a, b, self.nonlinearity, self.scale, reads)

    def sites_at(self, model: nn.Module, choose: Callable[[Block], Sequence[str | None]], what: str) -> list[str]:
        """Return the names that `choose` finds in the blocks of a model; warn where some blocks have none.

        Raises:
            UserError: there is none.
        """
        from lorax.adapters.bottleneck.sites import blocks_of

        by_block = [[name for name in choose(block) if name is not None] for block in blocks_of(model)]
        found = [name for names in by_block for name in names]
        if bare := by_block.count([]) if found else 0:
            why = f"{bare} of {len(by_block)} blocks have no {what} that is known (experts?) and get no adapter"
            warnings.warn(f"init={self.name}: {why}", stacklevel=2)
        if not found:
            line = f"init={self.name}: {type(model).__name__} has no {what} that is known; name submodules in targets"
            raise UserError(line)
        return list(dict.fromkeys(found))
