"""Per-layer second moments of the inputs over calibration batches: what EVA and CorDA start from.

    S = sum_t c_t x_t x_t^T / sum_t c_t  =  X^T X / T         x_t in R^n: a layer's input at token t, X: (T, n)

c_t is 0 for padding, so S does not depend on how batches are padded; T counts the tokens.
Source: EVA, arXiv:2410.07170 (right singular vectors of X are eigenvectors of S); CorDA, arXiv:2406.05223 (C = X X^T).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.kinds import factor_dtype, kind_of
from lorax.errors import UserError
from lorax.probing.calibration_pass import Loss, one_pass
from lorax.probing.ranks import add_over_ranks
from lorax.probing.unreached import UNSEEN, Unreached


def layer_activations(
    model: nn.Module, targets: Mapping[str, nn.Module], loss: Loss | None, batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Return S = X^T X / T of every target's input, from one forward pass without gradients.

    Padding is left out as `calibration_pass.token_counts` says: by the batch's attention mask, or by the loss. The
    model is in eval mode during the pass and as before afterwards.

    Args:
        model: any module.
        targets: {layer name: module} that takes inputs (..., n); of one that is called several times all inputs count.
        loss: calls the model on a batch, its value is not used; None calls `model(**batch)`.
        batches: read once; no labels are needed.

    Returns:
        {layer name: (n, n) on the CPU}, float64 where the weight is, else float32.

    Raises:
        UserError: no token, inputs that do not fit the batch's mask, or targets that the pass does not call.
    """
    moments = SecondMoments(targets)
    one_pass(model, loss, batches, moments=moments)
    return moments.means()


class SecondMoments:
    """The sums of x_t x_t^T over the targets' inputs.

    Memory: one (n, n) matrix per layer in main memory, whatever the number of tokens, and one at a time on the device.
    """

    def __init__(self, targets: Mapping[str, nn.Module]) -> None:
        """Start from zero."""
        self._targets = dict(targets)
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, float] = {}
        self.counts: list[Tensor] = []
        """Of the current batch; see `calibration_pass.token_counts`."""
        self.batches = 0
        """How many were passed."""

    @contextmanager
    def collecting(self, model: nn.Module) -> Iterator[None]:
        """Make forward passes add to the sums."""
        with ExitStack() as stack:
            for name, module in self._targets.items():

                def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                    self._add(name, args[0] if args else next(iter(kwargs.values())))

                stack.callback(module.register_forward_pre_hook(add, with_kwargs=True).remove)
            yield

    def add_ranks(self) -> None:
        """Add what all ranks have summed."""
        tokens = torch.tensor([self._tokens.get(name, 0.0) for name in self._targets], dtype=torch.float64)
        add_over_ranks([tokens])
        for count, (name, module) in zip(tokens.tolist(), self._targets.items(), strict=True):
            if not count:
                continue
            n = kind_of(module).shape(module)[1]
            self._tokens[name] = count
            self._sums.setdefault(name, torch.zeros(n, n, dtype=factor_dtype(module)))
            add_over_ranks([self._sums[name]])

    def means(self) -> dict[str, Tensor]:
        """Return {layer name: (n, n) second moment}.

        Raises:
            UserError: targets whose inputs were not met, or were all padding.
        """
        if not self._sums and not self.batches:
            raise UserError("calibration: no batch; a method that looks at activations needs batches=...")
        unreached = [name for name in self._targets if not self._tokens.get(name)]
        if unreached:
            raise Unreached(unreached, "no token reaches", UNSEEN)
        return {name: self._sums[name].div_(self._tokens[name]) for name in self._targets}

    @torch.no_grad()
    def _add(self, name: str, inputs: Tensor) -> None:
        module = self._targets[name]
        rows = kind_of(module).inputs(module, inputs.detach())
        x = rows.flatten(0, -2).to(factor_dtype(module))
        counts = self._fitting(name, inputs)
        tokens = float(len(x))
        if counts is not None:
            counts = counts.flatten().to(x.device, x.dtype)
            tokens, present = float(counts.sum()), counts > 0
            x = x[present] * counts[present, None].sqrt()
        with torch.autocast(x.device.type, enabled=False):
            gram = (x.mT @ x).cpu()
        if name in self._sums:
            self._sums[name] += gram
            self._tokens[name] += tokens
        else:
            self._sums[name], self._tokens[name] = gram, tokens

    def _fitting(self, name: str, inputs: Tensor) -> Tensor | None:
        """Return how often each of the layer's inputs counts; None: each once."""
        if not self.counts:
            return None
        places = inputs.shape[:-1]
        fitting = [counts for counts in self.counts if places in (counts.shape, (counts.numel(),))]
        if not fitting and places == self.counts[0].shape[:1]:
            return None  # one vector per row: pooled over its tokens
        if not fitting or not all(torch.equal(fitting[0].float(), other.float()) for other in fitting):
            masks = " and ".join(str(tuple(counts.shape)) for counts in self.counts)
            problem = "two masks fit" if fitting else "no mask fits"
            raise UserError(
                f"layer {name}: its input has shape {tuple(inputs.shape)}, {problem} (the batch's: {masks}), so its "
                "padding is not known; leave it out of targets, or give a loss with token_counts"
            )
        return fitting[0]
