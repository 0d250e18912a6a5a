"""AdaLoRA: an update of singular triplets; while it trains, the least important are masked, down to a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorax.adapters.face import Step, Trainable, TrainingRule
from lorax.errors import UserError
from lorax.initializers.base import Ranked, one_of
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe

STD = 0.02


@register("adalora")
@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Ranked):
    """Delta W = eta P diag(lambda) Q, lambda = 0 and P, Q ~ N(0, 0.02^2) at the start (arXiv:2303.10512).

    `rank` is the mean number of triplets a layer that are left at the end, `init_rank` the number at the start;
    eta = alpha / init_rank throughout. With t updates made out of T, L layers, b_0 = init_rank L, b_T = rank L:

        penalty     orth_weight * mean over the 2 L matrices of ||P^T P - I||_F, ||Q Q^T - I||_F
        importance  I = |w * dL/dw|;  I_ <- beta1 I_ + (1 - beta1) I;  U_ <- beta2 U_ + (1 - beta2) |I - I_|;  s = I_ U_
                    triplet i: s(lambda_i) + mean_j s(P_ji) + mean_j s(Q_ij)
        budget      b_0 up to t = warmup T; then b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_f - t_i))^3 down to
                    t = T - hold T; every `every` updates lambda := 0 outside the b most important triplets of all
                    layers; from T - hold T on the mask stays

    Sides taken, where paper and codes disagree: the norms of the penalty are not squared and averaged, as in both
    public codes (`orth=paper`: squared and summed); the importance takes w after the update and its clipped
    gradient before it, as in both codes; eta is alpha / init_rank exactly, where they add 1e-5 to the rank; exactly b
    triplets stay, where they cut more on ties and PEFT 0.21 fails at init_rank = rank. A masked triplet keeps P and Q
    and can come back before the last phase. The count of trained values is that at the start; the record says
    how many are left.
    """

    init_rank: int | None = None
    """Triplets a layer at the start; None: 1.5 times `rank`, rounded."""
    orth_weight: float = 0.1
    """Weight of the orthogonality penalty; 0.5 in PEFT."""
    orth: str = "mean"
    """mean: norms averaged; paper: squared norms summed."""
    beta1: float = 0.85
    """Smoothing of the importance."""
    beta2: float = 0.85
    """Smoothing of its uncertainty."""
    warmup: float = 0.15
    """Share of the updates before the budget falls."""
    hold: float = 0.3
    """Share of the updates, at the end, with the last mask."""
    every: int | None = None
    """Updates between masks; None: a hundredth of the run, at least 1."""

    def __post_init__(self) -> None:
        """Check the values and put the default ranks in place."""
        super().__post_init__()
        if self.init_rank is None:
            object.__setattr__(self, "init_rank", math.floor(1.5 * self.rank + 0.5))
        for name, value in (("init_rank", self.init_rank), ("every", 1 if self.every is None else self.every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name}={value}: a positive whole number is needed")
        if self.start_rank < self.rank:
            raise UserError(f"init_rank={self.init_rank}: at least rank={self.rank} is needed")
        one_of("orth", self.orth, ("mean", "paper"))
        for name in ("beta1", "beta2", "warmup", "hold"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
                raise UserError(f"{name}={value}: a number from 0 up to, not including, 1 is needed")
        if self.warmup + self.hold >= 1:
            raise UserError(f"warmup={self.warmup} and hold={self.hold}: together they must be below 1")
        weight = self.orth_weight
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < math.inf:
            raise UserError(f"orth_weight={weight}: a finite number of at least 0 is needed")

    @property
    def start_rank(self) -> int:
        """Triplets a layer at the start."""
        return self.rank if self.init_rank is None else self.init_rank

    @property
    def smallest(self) -> int:
        """The rank at the start."""
        return self.start_rank

    @property
    def eta(self) -> float:
        """Alpha / init_rank, or alpha / sqrt(init_rank): it does not follow the budget."""
        return (self.alpha or 0.0) / (self.start_rank if self.scaling == "standard" else math.sqrt(self.start_rank))

    @property
    def lr_factor(self) -> float:
        """Default learning rate over that at the default alpha, as for LoRA."""
        return float(self.default_alpha or self.rank) / self.start_rank / self.eta

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError where the rank at the start exceeds min(m, n)."""
        if self.start_rank > min(m, n):
            raise UserError(
                f"layer {name}: init_rank={self.start_rank} exceeds {min(m, n)}, min(m, n) of its {m}x{n} weight"
            )

    def count(self, m: int, n: int) -> int:
        """Return init_rank (m + n + 1)."""
        return self.start_rank * (m + n + 1)

    def __call__(self, probe: Probe) -> Factors:
        """Return Gaussian P and Q around a zero diagonal."""
        import torch

        from lorax.adapters.core import Diagonal
        from lorax.adapters.factors import Factors

        (m, n), r = probe.shape, self.start_rank
        P = torch.empty(m, r, dtype=torch.float64).normal_(0.0, STD, generator=probe.generator)
        Q = torch.empty(r, n, dtype=torch.float64).normal_(0.0, STD, generator=probe.generator)
        return Factors(
            B=P.to(probe.device, probe.dtype),
            M=Diagonal(torch.zeros(r, device=probe.device, dtype=probe.dtype)),
            A=Q.to(probe.device, probe.dtype),
            eta=self.eta,
            trainable=frozenset({"A", "B", "M"}),
        )

    def rule(self) -> TrainingRule:
        """The penalty and the budget."""
        return Allocation(self)


class Allocation(TrainingRule):
    """Penalty, importance and budget of one run.

    Args:
        method: its fields.
    """

    def __init__(self, method: AdaLoRA):
        self.method = method
        self.importance: dict[str, Tensor] = {}
        """I_ of each trained tensor, by name."""
        self.uncertainty: dict[str, Tensor] = {}
        """U_ of each trained tensor, by name."""
        self.kept: dict[str, Tensor] = {}
        """(init_rank,) bool of each layer at the last mask."""
        self._sizes: dict[str, int] = {}

    def penalty(self, adapters: Trainable) -> Tensor | None:
        """Return the distance of P and Q from orthonormality, weighted."""
        import torch

        if self.method.orth_weight == 0:
            return None
        norms = []
        for matrices in self._by_shape(adapters):  # P^T and Q alike, (r, .): one batch of products a shape
            stacked = torch.stack(matrices)
            distance = stacked @ stacked.mT - torch.eye(stacked.shape[1], dtype=stacked.dtype, device=stacked.device)
            norms.append(torch.linalg.matrix_norm(distance))
        all_norms = torch.cat(norms)
        return self.method.orth_weight * (all_norms.square().sum() if self.method.orth == "paper" else all_norms.mean())

    def _by_shape(self, adapters: Trainable) -> list[list[Tensor]]:
        groups: dict[Any, list[Tensor]] = {}
        for name, value in adapters.named_parameters().items():
            if not name.endswith(".M"):
                matrix = value if name.endswith(".A") else value.mT
                groups.setdefault((matrix.shape, matrix.device), []).append(matrix)
        return list(groups.values())

    def after_update(self, step: Step, adapters: Trainable) -> None:
        """Update the importance, and mask lambda where it is due."""
        t, T = step.index + 1, step.total
        first, last = self.phases(T)
        parameters = adapters.named_parameters()
        self._sizes = {name: value.numel() for name, value in parameters.items()}
        if t < last or not self.importance:
            self._update_importance(parameters)
        every = self.method.every or max(1, T // 100)
        if t == last or (first < t < last and t % every == 0):
            self._choose(parameters, self.budget(t, T, sum(name.endswith(".M") for name in parameters)))
        elif t < last:
            return
        self._mask([parameters[f"{layer}.M"] for layer in self.kept])

    def _mask(self, lambdas: list[Tensor]) -> None:
        """Set lambda to 0 where it is not kept, of all layers at once."""
        import torch

        if lambdas:
            masked = torch.cat(lambdas).masked_fill_(~torch.cat(list(self.kept.values())), 0.0)
            torch._foreach_copy_(lambdas, masked.split([value.numel() for value in lambdas]))

    def phases(self, total: int) -> tuple[int, int]:
        """Return (t_i, T - t_f): the updates after which the budget falls, and after which the mask stays."""
        first = round(self.method.warmup * total)
        return first, max(total - round(self.method.hold * total), first + 1)

    def budget(self, t: int, total: int, layers: int) -> int:
        """Return the number of triplets of all layers after update t."""
        first, last = self.phases(total)
        start, end = self.method.start_rank * layers, self.method.rank * layers
        if t <= first:
            return start
        if t >= last:
            return end
        return int(end + (start - end) * (1 - (t - first) / (last - first)) ** 3)

    def _update_importance(self, parameters: dict[str, Any]) -> None:
        """Update importance and uncertainty; a tensor that no gradient reached has a gradient of 0."""
        import torch

        names, values = list(parameters), list(parameters.values())
        gradients = [value.grad if value.grad is not None else torch.zeros_like(value) for value in values]
        now = torch._foreach_abs(torch._foreach_mul(values, gradients))
        if not self.importance:
            self.importance = dict(zip(names, (torch.zeros_like(value) for value in now), strict=True))
            self.uncertainty = dict(zip(names, (torch.zeros_like(value) for value in now), strict=True))
        beta1, beta2 = self.method.beta1, self.method.beta2
        smooth, spread = ([kept[name] for name in names] for kept in (self.importance, self.uncertainty))
        torch._foreach_mul_(smooth, beta1)
        torch._foreach_add_(smooth, now, alpha=1 - beta1)
        torch._foreach_mul_(spread, beta2)
        torch._foreach_add_(spread, torch._foreach_abs(torch._foreach_sub(now, smooth)), alpha=1 - beta2)

    def _choose(self, parameters: dict[str, Any], budget: int) -> None:
        """Keep the `budget` most important triplets of all layers."""
        import torch

        layers = [name.removesuffix(".M") for name in parameters if name.endswith(".M")]
        scores = torch.cat(self.scores(layers))
        kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        kept[scores.sort(descending=True, stable=True).indices[:budget]] = True
        sizes = [parameters[f"{layer}.M"].numel() for layer in layers]
        self.kept = dict(zip(layers, kept.split(sizes), strict=True))

    def scores(self, layers: Sequence[str]) -> list[Tensor]:
        """Return the importance of each layer's triplets, (init_rank,)."""
        import torch

        s = {}
        for letter in "BMA":
            names = [f"{layer}.{letter}" for layer in layers]
            s[letter] = torch._foreach_mul([self.importance[x] for x in names], [self.uncertainty[x] for x in names])
        found = torch._foreach_add(s["M"], [each.mean(0) for each in s["B"]])
        torch._foreach_add_(found, [each.mean(1) for each in s["A"]])
        return list(found)

    def report(self) -> dict[str, Any]:
        """Return each layer's number of triplets that are left, and, as `live`, how many trained values they have."""
        ranks = {layer: int(kept.sum()) for layer, kept in self.kept.items()}
        start = self.method.start_rank
        sizes = {layer: sum(self._sizes[f"{layer}.{letter}"] for letter in "BMA") // start for layer in ranks}
        return {"ranks": ranks, "live": sum(rank * sizes[layer] for layer, rank in ranks.items())} if ranks else {}

    def state_dict(self) -> dict[str, Any]:
        """Return importance, uncertainty and the last mask."""
        return {"importance": self.importance, "uncertainty": self.uncertainty, "kept": self.kept, "sizes": self._sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.importance, self.uncertainty = state["importance"], state["uncertainty"]
        self.kept, self._sizes = state["kept"], state["sizes"]
