"""SharedBasisGroup: lanes that share frozen factors (singular vectors), whose outer products are done once for all.

h = drop(x) A^T        one product for all lanes of the group, A: (k, n)
y += h_k (eta_k M_k)^T B^T

Where B and A are all singular vectors of the frozen weight, W = B diag(sigma) A, the input's gradient needs
no product with W: dx_k = (g_k B) (eta_k M_k + diag(sigma)) A, and g_k B is there for M's gradient. The
output still comes from W itself, so that step 0 stays exact.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lorax.adapters import core
from lorax.adapters.fused.blocks import Blocks, group_masks
from lorax.adapters.low_rank import LowRankAdapter


class SharedBasisGroup:
    """Lanes of a layer whose B and A are the same frozen tensors.

    Args:
        adapters: (position among the active lanes, adapter).
        count: number of active lanes.
    """

    def __init__(self, adapters: list[tuple[int, LowRankAdapter]], count: int):
        self.adapters = [adapter for _, adapter in adapters]
        self.blocks = Blocks([position for position, _ in adapters], count)
        self.trains = any("M" in adapter.trainable for adapter in self.adapters)
        self.diagonal = all(core.is_diagonal(adapter.core(adapter.current("M"))) for adapter in self.adapters)
        self._kept: tuple[object, Tensor] | None = None
        self._cast: dict[str, tuple[object, Tensor]] = {}

    def basis(self, name: str) -> Tensor:
        """Return the frozen B or A that all adapters have in common."""
        return self.adapters[0].start(name)

    def singular_values(self, W: Tensor) -> Tensor | None:
        """Return sigma, (k,), with W = B diag(sigma) A to rounding; None where the factors do not span W."""
        B, A = self.basis("B"), self.basis("A")
        k = min(W.shape)
        if W.dtype != A.dtype or B.shape[1] != k or A.shape[0] != k:
            return None
        sigma = ((B.mT @ W) * A).sum(1)
        z = torch.randn(W.shape[1], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(W)
        missed = torch.linalg.norm(W @ z - B @ (sigma[:, None] * (A @ z)))  # on average 2 ||W - B diag(sigma) A||_F
        return sigma if missed <= 64 * torch.finfo(W.dtype).eps * torch.linalg.norm(W) else None

    def whole(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, frozen: object | None, spans: bool
    ) -> Tensor | None:
        """Return x (W + eta B M A)^T + b by the whole matrix where that takes fewer operations, else None.

        Multiplications beyond the base's own, with T rows: token by token 2 T k (m + n) with the
        gradient (half without), T m n fewer where the factors span W; with the whole matrix
        2 m n k + T m n (m n k; none again while factors are `frozen`). Only in float32 or better: in a coarser dtype
        W + update would lose the update.

        Args:
            x: (..., n).
            weight: W, (m, n).
            bias: (m,).
            frozen: names a time in which no trained tensor changes.
            spans: B and A span W, so that the input's gradient needs no product with it.
        """
        adapter = self.adapters[0]
        (m, k), n = adapter.start("B").shape, adapter.start("A").shape[1]
        T = x.numel() // x.shape[-1]
        learns = torch.is_grad_enabled()
        whole = 2 * m * n * k + T * m * n if learns else 0 if frozen is not None else m * n * k
        thin = (1 + learns) * T * k * (m + n) - spans * T * m * n
        if x.dtype != adapter.start("A").dtype or weight.dtype != x.dtype or whole >= thin:
            return None
        if learns or frozen is None or self._kept is None or self._kept[0] is not frozen:
            M, B = adapter.core(adapter.current("M")), adapter.start("B")
            left = B * core.diagonal(cast(core.Sparse, M)) if self.diagonal else core.left_multiply(B, M)
            matrix = weight + adapter.eta * (left @ adapter.start("A"))
            self._kept = None if learns or frozen is None else (frozen, matrix)
        else:
            matrix = self._kept[1]
        return F.linear(x, matrix, bias)

    def outer(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return B or A in the dtype of the products; the cast is kept."""
        tensor = self.basis(name)
        if tensor.dtype == dtype:
            return tensor
        key = (tensor.data_ptr(), tensor._version, dtype)
        if self._cast.get(name, (None,))[0] != key:
            with torch.inference_mode(False):
                self._cast[name] = (key, tensor.to(dtype))
        return self._cast[name][1]

    def cores(self, dtype: torch.dtype, lane_scales: list[float]) -> Tensor:
        """Return s_k M_k, stacked: (K, 1, k) if all are diagonal, else (K, r_out, r_in)."""
        stacked = []
        for adapter, s in zip(self.adapters, self._scales(lane_scales), strict=True):
            M = adapter.core(adapter.current("M").detach())
            like = adapter.start("A")
            matrix = core.diagonal(cast(core.Sparse, M))[None] if self.diagonal else core.dense(M, 0, like)
            stacked.append(s * matrix)
        return torch.stack(stacked).to(dtype)

    def _scales(self, lane_scales: list[float]) -> list[float]:
        """Return s_k of the group's lanes, out of those of all active lanes."""
        return [lane_scales[position] for position in self.blocks.positions]

    def forward(
        self, x3: Tensor, out3: Tensor, lane_scales: list[float], drawn: Tensor | None, frozen: object | None
    ) -> list[Tensor | None]:
        """Add the lanes' outputs to `out3` in place; return what `backward` needs; see `StackedGroup.forward`."""
        A, B = self.outer("A", x3.dtype), self.outer("B", x3.dtype)
        x = self.blocks.take(x3)
        h = _times(x if drawn is None else group_masks(drawn, self.adapters, x.dtype).mul_(x), A.mT)
        C = self.cores(x3.dtype, lane_scales)
        self._add(out3, h * C if self.diagonal else h @ C.mT, B.mT)
        return [h, C, A, B, drawn]

    def backward(
        self,
        saved: list[Tensor | None],
        x: Tensor | None,
        lane_scales: list[float],
        g3: Tensor,
        dx3: Tensor | None,
        sigma: Tensor | None = None,
    ) -> list[Tensor]:
        """Add the input's gradient to `dx3` in place; return those of the leaves.

        Args:
            saved: from `forward`.
            x: (..., n), the layer's input; of no use here.
            lane_scales: s of every active lane.
            g3: gradient of the output.
            dx3: gradient of the input.
            sigma: from `singular_values`; then `dx3` is filled with all of the gradient, W's part included.
        """
        h, C, A, B, drawn = cast("tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]", saved)
        gh2 = _times(self.blocks.take(g3), B)
        grads = self._grads(gh2, h, self._scales(lane_scales)) if self.trains else []
        if dx3 is not None:
            if sigma is not None:
                C = C + (sigma if self.diagonal else torch.diag(sigma))
            gh = gh2.mul_(C) if self.diagonal else gh2 @ C
            if sigma is not None:
                torch.mm(gh.flatten(0, 1), A, out=dx3.flatten(0, 1))
            elif drawn is None:
                self._add(dx3, gh, A)
            else:
                self.blocks.accumulate(dx3, gh @ A, group_masks(drawn, self.adapters, gh.dtype))
        return grads

    def _grads(self, gh2: Tensor, h: Tensor, scales: list[float]) -> list[Tensor]:
        """The gradients of the trained cores: all of M from one product, then the cells that train."""
        full = (gh2 * h).sum(1) if self.diagonal else gh2.mT @ h
        return [
            core.values_at(adapter.core(adapter.start("M")), full[k].to(adapter.start("M").dtype) * scales[k])
            for k, adapter in enumerate(self.adapters)
            if "M" in adapter.trainable
        ]

    def _add(self, out3: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b, one matrix b for all lanes, in place."""
        if self.blocks.slice is not None:
            self.blocks.take(out3).flatten(0, 1).addmm_(a.flatten(0, 1), b)
        else:
            self.blocks.accumulate(out3, a @ b)


def _times(x3: Tensor, matrix: Tensor) -> Tensor:
    """Return x3 @ matrix, (K, T, p), as one product of all rows."""
    return torch.mm(x3.flatten(0, 1), matrix).view(*x3.shape[:2], matrix.shape[1])
