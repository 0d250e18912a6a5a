"""DyLoRA: every rank up to R trained at once, by a random truncation in each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lorax.adapters.face import Step, Trainable, TrainingRule
from lorax.errors import UserError
from lorax.initializers.base import one_of
from lorax.initializers.lora import LoRA
from lorax.initializers.registry import consumed, register

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
    `adapters.at_rank(b)` truncates, and `save` and `export_peft` write the first b components alone (`rank=b`). One
    draw serves all layers.

    `variant`: `nested` trains all b components; `frozen` gives a gradient to component b alone, as the authors'
    released runs do; there the others still move, since Adam's moments and the decay go on without a gradient,
    and `strict` holds them where they were, which is what the paper says.
    """

    version: ClassVar[int] = 2  # scored at several ranks
    variant: str = "nested"
    """nested | frozen | strict: which components of the drawn rank train."""
    ranks: Sequence[int] | None = None
    """The ranks drawn from, ascending; None: 1 to `rank`."""
    scored: Sequence[int] | None = None
    """The ranks below `rank` at which a run is scored too, each for the price of one more evaluation; None: those of
    `ranks` where they are given, else the powers of two; []: the whole rank alone."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        one_of("variant", self.variant, VARIANTS)
        ranks, scored = self._listed("ranks", self.ranks), self._listed("scored", self.scored)
        if ranks is not None and not ranks:
            raise UserError(f"ranks={self.ranks}: a list of whole numbers from 1 to rank={self.rank} is needed")
        object.__setattr__(self, "ranks", None if ranks is not None and len(ranks) == self.rank else ranks)
        if scored is not None:
            scored = tuple(b for b in scored if b < self.rank)  # the whole rank is scored anyway
            object.__setattr__(self, "scored", None if scored == self._scored_by_default() else scored)

    def _listed(self, name: str, ranks: Any) -> tuple[int, ...] | None:
        """Return a field's ranks, ascending; None where nobody gave any."""
        if ranks is None:
            return None
        whole = isinstance(ranks, Sequence) and not isinstance(ranks, str)
        if not whole or not all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= self.rank for b in ranks):
            raise UserError(f"{name}={ranks}: a list of whole numbers from 1 to rank={self.rank} is needed")
        return tuple(sorted(set(ranks)))

    def _scored_by_default(self) -> tuple[int, ...]:
        ranks = self.ranks if self.ranks is not None else [2**k for k in range(self.rank.bit_length())]
        return tuple(b for b in ranks if b < self.rank)

    def __call__(self, probe: Probe) -> Factors:
        """Return LoRA's factors around a diagonal of ones."""
        import torch

        from lorax.adapters.core import Diagonal

        ones = torch.ones(self.rank, device=probe.device, dtype=probe.dtype)
        return replace(super().__call__(probe), M=Diagonal(ones))

    def rule(self) -> TrainingRule:
        """Draw a rank before each step."""
        return _Truncate(self)


class _Truncate(TrainingRule):
    """Draws b, all with the same probability, truncates to it for the step, and puts the whole rank back.

    Args:
        method: its fields.
    """

    def __init__(self, method: DyLoRA):
        self.method, self.variant, self.scaling = method, method.variant, method.scaling
        self.ranks = list(method.ranks or range(1, method.rank + 1))
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

    def truncations(self) -> Sequence[int]:
        """1 to R - 1: any prefix computes; those whose rank was never drawn were not trained for."""
        return range(1, self.method.rank)

    def scored(self) -> Sequence[int]:
        """Return the field `scored`, or its default."""
        return self.method._scored_by_default() if self.method.scored is None else self.method.scored

    @contextmanager
    def at_rank(self, adapters: Trainable, rank: int) -> Iterator[None]:
        """Truncate for a while; what was there before comes back."""
        import torch

        self._check(adapters, rank)
        diagonals = [_diagonal(adapter) for adapter in adapters.layer_adapters().values()]
        before = [values.clone() for values in diagonals]
        _truncate(adapters, rank, self.scaling)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(diagonals, before)

    def cut(self, adapters: Trainable, rank: int) -> tuple[dict[str, Any], dict[str, LayerAdapter]]:
        """Return the DyLoRA of rank b that the first b components are, eta = alpha / b."""
        import torch

        from lorax.adapters.core import Diagonal
        from lorax.adapters.low_rank import LowRankAdapter

        self._check(adapters, rank)
        ranks = None if self.method.ranks is None else [b for b in self.method.ranks if b <= rank] or None
        method = replace(self.method, rank=rank, ranks=ranks, scored=None)
        factor = _factor(self.method.rank, rank, self.scaling)
        layers: dict[str, LayerAdapter] = {}
        for name, adapter in adapters.layer_adapters().items():
            whole = adapter.factors()
            if whole is None or not isinstance(whole.M, Diagonal):
                raise UserError(f"layer {name}: no prefix of its adapter can be taken")
            ones = torch.ones_like(whole.M.values[:rank])
            prefix = replace(whole, B=whole.B[:, :rank], M=Diagonal(ones), A=whole.A[:rank], eta=whole.eta * factor)
            layers[name] = LowRankAdapter(prefix)
        return adapters.info | {"init": consumed(method)}, layers

    def _check(self, adapters: Trainable, rank: Any) -> None:
        whole = self.method.rank
        if adapters.merged:
            raise UserError(f"rank {rank}: the adapters are merged; unmerge() first")
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= whole:
            raise UserError(f"rank {rank}: a whole number from 1 to {whole} is needed")

    def _component(self, name: str, value: Tensor) -> Tensor:
        """1 on component b of A (a row) or B (a column), 0 elsewhere; broadcasts to the tensor."""
        rank = value.shape[0] if name.endswith("A") else value.shape[1]
        mask = value.new_zeros(rank)
        mask[self.b - 1] = 1
        return mask[:, None] if name.endswith("A") else mask


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
            factor = _factor(rank, kept, scaling)
            truncated = factor * (torch.arange(rank, device=device) < kept).to(torch.float64)
            torch._foreach_copy_(diagonals, [truncated] * len(diagonals))


def _factor(rank: int, kept: int, scaling: str) -> float:
    """What eta of the whole rank is multiplied by at a lower one: R / b, or its root."""
    return rank / kept if scaling == "standard" else (rank / kept) ** 0.5


def _diagonal(adapter: LayerAdapter) -> torch.Tensor:
    return adapter.get_buffer("M")
