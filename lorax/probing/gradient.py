"""Per-layer gradients of a loss over calibration batches, one layer's gradient on the device at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.kinds import bias_of, kind_of, oriented, shape_of
from lorax.adapters.linears.frozen_product import Collect, Product, collecting
from lorax.adapters.linears.quantised import QuantisedKind
from lorax.errors import UserError
from lorax.probing.calibration_pass import Loss, one_pass
from lorax.probing.ranks import add_over_ranks
from lorax.probing.unreached import Unreached


def layer_gradients(
    model: nn.Module, targets: Mapping[str, nn.Module], loss: Loss | None, batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Return G = sum_b w_b grad L_b / sum_b w_b of every target's weight.

    w_b is the number of labels that the loss of batch b averages over, so G is the gradient of the mean
    over all labelled tokens, however they are divided into batches. The model is in eval mode (no dropout)
    during the pass; every flag and every `.grad` is as before afterwards.

    Args:
        model: any module with float weights.
        targets: {layer name: module} with an (m, n) weight, or Conv1D's (n, m).
        loss: loss(model, batch) -> scalar mean, or (scalar mean, weight); None takes `model(**batch).loss`
            weighted by the labels it counts (-100 is not counted, and a causal model's first is not).
        batches: read once.

    Returns:
        {layer name: (m, n) gradient on the CPU}, float32, or float64 where the weight is.

    Raises:
        UserError: no batches, a loss that is not a finite scalar, or targets that no gradient reaches.
    """
    sums = GradientSums(targets)
    one_pass(model, loss, batches, gradients=sums)
    return sums.means()


class GradientSums:
    """The weighted sums of the targets' gradients.

    Only target weights require a gradient. Each gradient is added to a buffer on the CPU, float32 or wider, the moment
    it is complete and then released, so the device holds one layer's gradient. Modules that share a weight share its
    gradient, counted once. A quantised weight has no gradient: G = g^T x is formed in the backward pass of its layer,
    as the gradient of the dequantised weight would be.
    """

    def __init__(self, targets: Mapping[str, nn.Module]) -> None:
        """Start from zero.

        Raises:
            UserError: a weight that is no float.
        """
        self._targets = dict(targets)
        self._weights = {name: module.get_parameter("weight") for name, module in targets.items()}
        kinds = {name: kind_of(module) for name, module in targets.items()}
        self._quantised = {name: kind for name, kind in kinds.items() if isinstance(kind, QuantisedKind)}
        for name, weight in self._weights.items():
            if not weight.is_floating_point() and name not in self._quantised:
                raise UserError(f"layer {name}: its {weight.dtype} weight has no gradient")
        self._sums: dict[int, Tensor] = {}
        self._total = 0.0

    @contextmanager
    def collecting(self, model: nn.Module) -> Iterator[None]:
        """Make backward passes add to the sums; on leaving, every flag and every `.grad` is as before."""
        weights = {id(weight): weight for name, weight in self._weights.items() if name not in self._quantised}
        before = [(p, p.requires_grad, p.grad) for p in {*model.parameters(), *weights.values()}]
        with ExitStack() as stack:
            for parameter, required, gradient in before:
                stack.callback(_put_back, parameter, required, gradient)
                parameter.grad = None
                parameter.requires_grad_(id(parameter) in weights)
            for weight in weights.values():
                stack.callback(weight.register_post_accumulate_grad_hook(self._collect).remove)
            stack.enter_context(collecting(self._products()))
            yield

    def add(self, mean_loss: Tensor, weight: float) -> None:
        """Add the gradients of one batch: of its mean loss, times its weight; nothing at weight 0."""
        if weight > 0:
            (mean_loss * weight).backward()
            self._total += weight

    def add_ranks(self) -> None:
        """Add what all ranks have summed: the gradient is then over the batches of all of them."""
        total = torch.tensor(self._total, dtype=torch.float64)
        reached = torch.tensor([float(id(weight) in self._sums) for weight in self._weights.values()])
        add_over_ranks([total, reached])
        self._total = float(total)
        shapes = {id(weight): weight.shape for weight in self._weights.values()}
        shapes |= {id(self._weights[name]): torch.Size(shape_of(self._targets[name])) for name in self._quantised}
        for there, weight in zip(reached, self._weights.values(), strict=True):
            if there and id(weight) not in self._sums:
                self._sums[id(weight)] = torch.zeros(shapes[id(weight)], dtype=_wide(weight))
        add_over_ranks({id(w): self._sums[id(w)] for w in self._weights.values() if id(w) in self._sums}.values())

    def means(self) -> dict[str, Tensor]:
        """Return {layer name: (m, n) gradient}.

        Raises:
            UserError: nothing was added, or targets that no gradient reached.
        """
        if self._total == 0:
            raise UserError("calibration: no batch with a counted label; a gradient method needs batches=...")
        unreached = [name for name, weight in self._weights.items() if id(weight) not in self._sums]
        if unreached:
            raise Unreached(unreached)
        for gradient in self._sums.values():
            gradient.div_(self._total)
        return {name: oriented(self._targets[name], self._sums[id(weight)]) for name, weight in self._weights.items()}

    def _collect(self, weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        self._add(weight, gradient)

    def _add(self, weight: Tensor, gradient: Tensor) -> None:
        total = self._sums.get(id(weight))
        if total is not None:
            total += gradient.to("cpu", total.dtype)
        else:
            self._sums[id(weight)] = gradient.to("cpu", _wide(weight), copy=True)

    def _products(self) -> Iterator[tuple[nn.Module, Product, Callable[[], Tensor], Collect]]:
        """Yield what `collecting` needs of each quantised target."""
        for name, kind in self._quantised.items():
            module, weight = self._targets[name], self._weights[name]
            product = partial(kind.product, weight=weight, bias=bias_of(module))
            yield module, product, partial(kind.weight, module), partial(self._add_product, weight)

    def _add_product(self, weight: Tensor, g: Tensor, x: Tensor) -> None:
        self._add(weight, g.mT @ x)


def _wide(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _put_back(parameter: Tensor, required: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(required)
    parameter.grad = gradient
