"""MTL-LoRA: several tasks share A and N up-projections, and each has a core and mixing weights of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Ranked, one_of, positive
from lorax.initializers.lora import LoRA
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.face import LayerPlan
    from lorax.probing.probe import Probe


@register("mtl_lora")
@dataclass(frozen=True, kw_only=True)
class MTLLoRA(Ranked):
    """Delta W_t = eta (sum_i softmax(w_t / temperature)_i B_i) Lambda_t A, i = 1..N (arXiv:2410.09437).

    A and B_i are the tensors of all tasks of a group, Lambda_t and w_t a task's own; r n + N r m + T (r^2 + N) values
    for T tasks. B_i = 0 and Lambda = I at the start; w (T, N) is drawn as a Kaiming-uniform matrix with a = sqrt 5,
    U(-1/sqrt N, 1/sqrt N). Nothing depends on the input: after training a task's adapter is one product (B, M, A).

    Side taken: the authors' code divides the logits by an option that is 0 unless it is given; here `temperature` is 1.
    """

    distribution: str = "kaiming"
    """kaiming | gaussian: of A, as in LoRA."""
    ups: int = 3
    """N, the number of up-projections B_i."""
    core: str = "full"
    """full: Lambda_t is (r, r); diagonal: (r,)."""
    temperature: float = 1.0
    """Divides w_t."""

    shared_by_tasks: ClassVar[tuple[str, ...]] = ("A", "B")

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if isinstance(self.ups, bool) or not isinstance(self.ups, int) or not 1 <= self.ups <= 1000:
            raise UserError(f"ups={self.ups}: a whole number from 1 to 1,000 is needed")
        one_of("distribution", self.distribution, ("kaiming", "gaussian"))
        one_of("core", self.core, ("full", "diagonal"))
        positive("temperature", self.temperature)

    def count(self, m: int, n: int) -> int:
        """Return r n + N r m + r^2 (or r) + N, of one task; the first two are those of every other task too."""
        r = self.rank
        return r * n + self.ups * r * m + (r * r if self.core == "full" else r) + self.ups

    def of_task(self, index: int) -> MTLLoRA:
        """Return the method with row `index` of w."""
        return _OfTask(**{item.name: getattr(self, item.name) for item in fields(self)}, index=index)

    def __call__(self, probe: Probe) -> LayerPlan:
        """Return B_i = 0 and Lambda = I around LoRA's A, and the first task's row of w."""
        return self._start(probe, 0)

    def _start(self, probe: Probe, index: int) -> LayerPlan:
        import torch

        from lorax.adapters.joint.mixed import MixedFactors

        plain = LoRA(rank=self.rank, distribution=self.distribution)(probe)
        w = torch.empty(index + 1, self.ups, dtype=torch.float64)
        w.uniform_(-1 / math.sqrt(self.ups), 1 / math.sqrt(self.ups), generator=probe.generator)
        ones = torch.ones(self.rank, device=probe.device, dtype=probe.dtype)
        M = ones.diag() if self.core == "full" else ones
        B = plain.B.expand(self.ups, -1, -1)
        return MixedFactors(B, M, w[index].to(probe.device, probe.dtype), plain.A, self.eta, self.temperature)


@dataclass(frozen=True, kw_only=True)
class _OfTask(MTLLoRA):
    """The method as it starts one task's adapters."""

    index: int = 0

    def __call__(self, probe: Probe) -> LayerPlan:
        """Return the start of task `index`."""
        return self._start(probe, self.index)
