"""DyLoRA: every rank up to R trained at once, by a random truncation in each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorax.adapters.face import Step, Trainable, TrainingRule
from lorax.errors import UserError
from lorax.initializers.base import one_of
from lorax.initializers.lora import LoRA
from lorax.initializers.registry import register

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorax.adapters.factors import Factors
    from lorax.adapters.layer_adapter import LayerAdapter
    from lorax.probing.probe import Probe

VARIANTS = ("nested", "frozen", "strict")


@register("dylora")
@dataclass(frozen=True, kw_only=True)
class DyLoRA(LoRA):
    """Delta W = (alpha / b) B[:, :b] A[:b], b drawn in each step from 1..R (arXiv:2210.07558); R = `rank`.

    Stored as eta B M A with eta = alpha / R and a frozen diagonal M: R / b on the first b places, 0 after them
    (under `scaling=rslora` sqrt(R / b), so that eta M = alpha / sqrt(b)). Between steps M holds the whole rank;
    `at_rank` truncates. One draw serves all layers.

    `variant`: `nested` trains all b components; `frozen` gives a gradient to component b alone, as the authors'
    released runs do; there the others still move, since Adam's moments and the decay go on without a gradient,
    and `strict` holds them where they were, which is what the paper says.
    """

    variant: str = "nested"
    """nested | frozen | strict: which components of the drawn rank train."""
    ranks: Sequence[int] | None = None
    """The ranks drawn from, ascending; None: 1 to `rank`."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        one_of("variant", self.variant, VARIANTS)
        if self.ranks is None:
            return
        ranks = list(self.ranks) if isinstance(self.ranks, Sequence) and not isinstance(self.ranks, str) else []
        whole = all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= self.rank for b in ranks)
        if not ranks or not whole:
            raise UserError(f"ranks={self.ranks}: a list of whole numbers from 1 to rank={self.rank} is needed")
        ascending = tuple(sorted(set(ranks)))
        object.__setattr__(self, "ranks", None if len(ascending) == self.rank else ascending)

    def __call__(self, probe: Probe) -> Factors:
        """Return LoRA's factors around a diagonal of ones."""
        import torch

        from lorax.adapters.core import Diagonal

        ones = torch.ones(self.rank, device=probe.device, dtype=probe.dtype)
        return replace(super().__call__(probe), M=Diagonal(ones))

    def rule(self) -> TrainingRule:
        """Draw a rank before each step."""
        return _Truncate(self.ranks or tuple(range(1, self.rank + 1)), self.variant, self.scaling)


class _Truncate(TrainingRule):
    """Draws b, truncates to it for the step, and puts the whole rank back.

    Args:
        ranks: one is drawn for each step, all with the same probability.
        variant: nested | frozen | strict.
        scaling: standard | rslora.
    """

    def __init__(self, ranks: Sequence[int], variant: str, scaling: str):
        self.ranks, self.variant, self.scaling = list(ranks), variant, scaling
        self.b = self.ranks[-1]
        self._before: dict[str, Tensor] = {}

    def before_forward(self, step: Step, adapters: Trainable) -> None:
        """Draw b for all layers and write the truncated diagonal."""
        import torch

        self.b = self.ranks[int(torch.randint(len(self.ranks), (), generator=step.generator))]
        _truncate(adapters, self.b, self.scaling)
        if self.variant == "strict":
            self._before = {name: value.detach().clone() for name, value in adapters.named_parameters().items()}

    def after_backward(self, step: Step, adapters: Trainable) -> None:
        """Under `frozen` and `strict`, keep the gradient of component b only."""
        if self.variant == "nested":
            return
        for name, value in adapters.named_parameters().items():
            if value.grad is not None:
                value.grad.mul_(self._component(name, value))

    def after_update(self, step: Step, adapters: Trainable) -> None:
        """Under `strict`, put the other components back; then the whole rank."""
        if self.variant == "strict":
            for name, value in adapters.named_parameters().items():
                value.lerp_(self._before[name], 1 - self._component(name, value))
            self._before = {}
        _truncate(adapters, None, self.scaling)

    def finish(self, adapters: Trainable) -> None:
        """Put the whole rank back, also after a step that was not completed."""
        _truncate(adapters, None, self.scaling)

    def _component(self, name: str, value: Tensor) -> Tensor:
        """1 on component b of A (a row) or B (a column), 0 elsewhere; broadcasts to the tensor."""
        rank = value.shape[0] if name.endswith("A") else value.shape[1]
        mask = value.new_zeros(rank)
        mask[self.b - 1] = 1
        return mask[:, None] if name.endswith("A") else mask


@contextmanager
def at_rank(adapters: Trainable, b: int) -> Iterator[None]:
    """Compute with the first b components for a while: the model of rank b, which was trained too.

    Args:
        adapters: of a DyLoRA run.
        b: 1 to the stored rank.

    Raises:
        UserError: other adapters, merged ones, or b out of bounds.
    """
    init = adapters.info.get("init", {})
    if init.get("name") != DyLoRA.name or adapters.merged:
        raise UserError("at_rank needs unmerged adapters of init=dylora")
    whole, scaling = init["rank"], init["scaling"]
    if not 1 <= b <= whole:
        raise UserError(f"rank {b}: between 1 and {whole} is needed")
    _truncate(adapters, b, scaling)
    try:
        yield
    finally:
        _truncate(adapters, None, scaling)


def _truncate(adapters: Trainable, b: int | None, scaling: str) -> None:
    """Write the diagonal of rank b into every layer; None: of the whole rank."""
    import torch

    with torch.no_grad():
        alike: dict[tuple[int, torch.device], list[torch.Tensor]] = {}
        for adapter in adapters.layer_adapters().values():
            values = _diagonal(adapter)
            alike.setdefault((values.numel(), values.device), []).append(values)
        for (rank, device), diagonals in alike.items():
            kept = rank if b is None else b
            factor = rank / kept if scaling == "standard" else (rank / kept) ** 0.5
            truncated = torch.where(torch.arange(rank, device=device) < kept, factor, 0.0)
            torch._foreach_copy_(diagonals, [truncated] * len(diagonals))


def _diagonal(adapter: LayerAdapter) -> torch.Tensor:
    return adapter.get_buffer("M")
