"""LayerAdapter: the trained tensors of one run at one layer, and what they make of the layer's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lorax.adapters.dropout import quantise
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors


class LayerAdapter(nn.Module):
    """One run's adapter at one layer or module. Subclasses give `output`, and `delta` where there is one.

    Args:
        dropout: probability on the adapter's input, quantised to 1/256.
    """

    fusible = False
    """Whether the fused forms cover this adapter; else the layer runs in plain operations."""
    shifts_base = False
    """Whether the frozen weight changes under recenter=fold."""
    eta: float | None = None
    """The scale of the update, where the method has one."""
    drops_output = False
    """Whether dropout falls on the frozen layer's output, (..., m), which the adapter reads, not on its input."""
    masks = 1
    """Dropout masks of its input: with more than one, `output` gets (masks, ..., n)."""
    not_exported = "its adapter has no low-rank form"
    """Why an adapter without a low-rank form is not exported."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.q = quantise(dropout)
        """Dropout probability in 256ths; 0: no dropout."""
        self.report: dict[str, float] = {}
        """Facts about this layer for the record."""

    def output(self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None, mask: Tensor | None) -> Tensor:
        """Return the adapted output, (..., m), for the rows of one run.

        Args:
            x: (..., n), the layer's input.
            base: (..., m), the frozen layer's own output; its dtype is that of the products.
            weight: returns the frozen weight, (m, n); None where the module has none.
            mask: the scaled dropout mask of x, (..., n), or of base where `drops_output`; None without dropout.
        """
        raise NotImplementedError(f"{type(self).__name__}.output")

    def bind(self, module: nn.Module) -> None:
        """Learn at which submodule the adapter stands, where that is no linear layer; called once."""

    def delta(self, weight: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Return W' - W0, (m, n), or None where the adapter is no change of the weight: no merge, no export.

        Args:
            weight: returns W_fz, (m, n), for methods whose change depends on it.
        """
        return None

    def shift(self) -> Tensor | None:
        """Return W0 - W_fz, (m, n), of adapters that shift the base."""
        return None

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained tensors by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def factors(self) -> Factors | None:
        """Return the current values as low-rank factors, where the adapter has that form."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return plain data from which, with the tensors, a saved adapter is built again; see `adapters.files.plans`.

        Raises:
            UserError: the adapter does not say how it is built again, so it cannot be saved.
        """
        raise UserError(f"{type(self).__name__} cannot be saved: it does not describe itself")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LayerAdapter:
        """Follow the model to another device, never to a coarser dtype."""
        return super()._apply(lambda tensor: _moved(tensor, fn), recurse)


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    moved = fn(tensor)
    return tensor.to(moved.device) if moved.dtype != tensor.dtype else moved
