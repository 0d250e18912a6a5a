"""StackedGroup: lanes of small rank, all of them as one padded pair of products.

For adapter k, with s_k = eta_k (times the dropout scale) and x_k its rows,

    h_k = s_k * drop(x_k) D_k^T        D: (K, R, n)
    y_k += h_k C_k^T U_k^T             U: (K, m, R), C: (K, R, R) where a lane has a core

D_k, U_k hold A_k, B_k; for a carried lane [A ; dA] and [dB, B0], the telescoped difference.
Rows and columns beyond a lane's rank are zero, which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lorax.adapters import core
from lorax.adapters.fused.blocks import Blocks, group_masks, product
from lorax.adapters.low_rank import LowRankAdapter


@dataclass
class Stack:
    """The stacked factors of one call, in the dtype of its products; of a single lane without the first dim."""

    D: Tensor
    U: Tensor
    C: Tensor | None


_Saved = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""h, D, U, C where there is a core, random bytes under dropout."""


class StackedGroup:
    """Adapters of small rank at one layer.

    Args:
        adapters: (position among the active lanes, adapter).
        count: number of active lanes.
    """

    def __init__(self, adapters: list[tuple[int, LowRankAdapter]], count: int):
        self.adapters = [adapter for _, adapter in adapters]
        self.blocks = Blocks([position for position, _ in adapters], count)
        self.has_core = any(adapter.header["kind"] != "identity" for adapter in self.adapters)
        self.widths = [_width(adapter) for adapter in self.adapters]
        self.R = max(max(pair) for pair in self.widths)
        trained = [adapter.trainable for adapter in self.adapters]
        self.trains = {name: any(name in one for one in trained) for name in "ABM"}
        self.single = len(self.adapters) == 1
        self.carried = _alike(self.adapters)
        self._kept: tuple[object, Stack] | None = None
        self._scales: dict[tuple, Tensor] = {}

    def stack(self, dtype: torch.dtype, frozen: object | None) -> Stack:
        """Return the stacked factors; `frozen` names a time in which no trained tensor changes."""
        key = (frozen, dtype)
        if frozen is not None and self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        built = self._build(dtype)
        self._kept = (key, built) if frozen is not None else None
        return built

    def _build(self, dtype: torch.dtype) -> Stack:
        D, U = self._uneven(dtype) if self.carried is None else self._even(dtype)
        return Stack(D, U, self._cores(D) if self.has_core else None)

    def _even(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return D and U of lanes that are alike in shape and form: a few calls for all of them."""
        if not self.carried:
            A, B = self._all("A"), self._all("B")
            return A.to(dtype), B.to(dtype)
        A, dA, B, dB = self._all("A0"), self._all("dA"), self._all("B0"), self._all("dB")
        return torch.cat([A + dA, dA], -2).to(dtype), torch.cat([dB, B], -1).to(dtype)

    def _all(self, name: str) -> Tensor:
        """Return one tensor of every adapter, stacked; of a single adapter as it is."""
        tensors = [getattr(adapter, name) for adapter in self.adapters]
        return tensors[0] if self.single else torch.stack(tensors)

    def _uneven(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return D and U of lanes of any rank and form, zero beyond each lane's own."""
        A, B = self.adapters[0].start("A"), self.adapters[0].start("B")
        D = A.new_zeros((len(self.adapters), self.R, A.shape[1]), dtype=dtype)
        U = A.new_zeros((len(self.adapters), B.shape[0], self.R), dtype=dtype)
        for adapter, D_k, U_k in zip(self.adapters, D.unbind(), U.unbind(), strict=True):
            _fill(adapter, D_k, U_k)
        return (D[0], U[0]) if self.single else (D, U)

    def _cores(self, like: Tensor) -> Tensor:
        C = torch.eye(self.R, dtype=like.dtype, device=like.device).repeat(len(self.adapters), 1, 1)
        for k, adapter in enumerate(self.adapters):
            if adapter.header["kind"] != "identity":
                matrix = core.dense(adapter.core(adapter.current("M").detach()), 0, like)
                C[k].zero_()
                C[k, : matrix.shape[0], : matrix.shape[1]] = matrix
        return C[0] if self.single else C

    def scales(self, lane_scales: list[float], like: Tensor) -> Tensor | float:
        """Return s_k: one number where all adapters agree, else a (K, 1, 1) tensor."""
        if self.single:
            return lane_scales[self.blocks.positions[0]]
        scales = [lane_scales[position] for position in self.blocks.positions]
        if len(set(scales)) == 1:
            return scales[0]
        key = (*scales, like.dtype, like.device)
        if key not in self._scales:
            with torch.inference_mode(False):
                self._scales = {key: like.new_tensor(scales)[:, None, None]}
        return self._scales[key]

    def forward(
        self, x3: Tensor, out3: Tensor, lane_scales: list[float], drawn: Tensor | None, frozen: object | None
    ) -> list[Tensor | None]:
        """Add the lanes' outputs to `out3` in place; return what `backward` needs.

        Args:
            x3: (K_active, T, n).
            out3: (K_active, T, m).
            lane_scales: s of every active lane.
            drawn: (K, T, n) random bytes of the dropout masks; None without dropout.
            frozen: names a time in which no trained tensor changes.
        """
        stack = self.stack(x3.dtype, frozen)
        x = self._take(x3)
        h = product(x if drawn is None else self._masks(drawn, x.dtype).mul_(x), stack.D.mT)
        h *= self.scales(lane_scales, h)
        self._add(out3, h if stack.C is None else product(h, stack.C.mT), stack.U.mT)
        return [h, stack.D, stack.U, stack.C, drawn]

    def backward(
        self,
        saved: list[Tensor | None],
        x: Tensor | None,
        lane_scales: list[float],
        g3: Tensor,
        dx3: Tensor | None,
        sigma: Tensor | None = None,
    ) -> list[Tensor]:
        """Add the input's gradient to `dx3` in place; return the leaves'; see `SharedBasisGroup.backward`.

        Args:
            saved: from `forward`.
            x: (..., n), the layer's input; None where it was not kept, as no A trains.
            lane_scales: as `forward`.
            g3: (K_active, T, m), gradient of the output.
            dx3: (K_active, T, n), gradient of the input.
            sigma: of no use here.
        """
        h, D, U, C, drawn = cast("_Saved", saved)
        g = self._take(g3)
        gh2 = product(g, U)
        gC = product(gh2.mT, h) if self.trains["M"] else None
        gh = gh2 if C is None else product(gh2, C)
        gh *= self.scales(lane_scales, gh)
        mask = None if drawn is None else self._masks(drawn, gh.dtype)
        trained_h, trained_gh = self._narrowed(h if C is None else product(h, C.mT), gh)
        # (h^T g)^T, since BLAS is about twice as slow with the wide operand transposed.
        gU = product(trained_h.mT, g).mT if self.trains["B"] else None
        gD = None
        if x is not None and self.trains["A"]:
            rows = self._rows(x, g3.shape[0])
            gD = product(trained_gh.mT, rows if mask is None else rows * mask)
        if dx3 is not None and mask is None:
            self._add(dx3, gh, D)
        elif dx3 is not None:
            add = product(gh, D)
            self.blocks.accumulate(dx3, add[None] if self.single else add, mask)
        return self._split(gD, gU, gC)

    def _narrowed(self, h: Tensor, gh: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and its gradient; of carried lanes that are alike, only the columns that something trained needs.

        U = [dB, B0] and D = [A0 + dA ; dA]: dB needs the first half of h, and dA gets
        (gh_1 + gh_2)^T x, one product instead of two.
        """
        if not self.carried:
            return h, gh
        r = self.R // 2
        return h[..., :r], gh[..., :r] + gh[..., r:]

    def _split(self, gD: Any, gU: Any, gC: Any) -> list[Tensor]:
        """Return the leaves' gradients from those of D, U and C, None where nothing in them trains."""
        if self.carried is not None:
            if self.single:
                return [gU, gD]
            return [grad for pair in zip(gU.unbind(), gD.unbind(), strict=True) for grad in pair]
        gD, gU, gC = (grad[None] if self.single and grad is not None else grad for grad in (gD, gU, gC))
        return [grad for k, adapter in enumerate(self.adapters) for grad in _split(adapter, k, gD, gU, gC)]

    def _take(self, x3: Tensor) -> Tensor:
        """Return the group's rows: (K, T, n), of a single lane (T, n)."""
        return x3[self.blocks.positions[0]] if self.single else self.blocks.take(x3)

    def _rows(self, x: Tensor, count: int) -> Tensor:
        """Return `_take` of a layer's input, (..., n), with `count` active lanes; of a lane alone in one view."""
        return x.reshape(-1, x.shape[-1]) if count == 1 else self._take(x.reshape(count, -1, x.shape[-1]))

    def _masks(self, drawn: Tensor, dtype: torch.dtype) -> Tensor:
        masks = group_masks(drawn, self.adapters, dtype)
        return masks[0] if self.single else masks

    def _add(self, out3: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b to the group's rows of `out3`, in place."""
        if self.single:
            out3[self.blocks.positions[0]].addmm_(a, b)
        else:
            self.blocks.add(out3, a, b)


def _alike(adapters: list[LowRankAdapter]) -> bool | None:
    """Return whether adapters that are alike in rank and form, with A and B trained and no core, are carried.

    None where they are not alike.
    """
    kinds = {(adapter.carries, adapter.start("A").shape, adapter.start("B").shape) for adapter in adapters}
    plain = all(adapter.header["kind"] == "identity" and adapter.trainable == {"A", "B"} for adapter in adapters)
    folded = any(adapter.shifts_base and not adapter.carries for adapter in adapters)  # folded: trained as differences
    return next(iter(kinds))[0] if len(kinds) == 1 and plain and not folded else None


def _width(adapter: LowRankAdapter) -> tuple[int, int]:
    """Rows of D and columns of U that an adapter takes."""
    if not adapter.carries:
        return adapter.start("A").shape[0], adapter.start("B").shape[1]
    r = adapter.rank * len(adapter.trainable & {"A", "B"})
    return r, r


def _fill(adapter: LowRankAdapter, D: Tensor, U: Tensor) -> None:
    if not adapter.carries:
        A, B = adapter.current("A"), adapter.current("B")
        D[: A.shape[0]].copy_(A)
        U[:, : B.shape[1]].copy_(B)
        return
    r, dA, dB = adapter.rank, adapter.change("A"), adapter.change("B")
    at = 0
    if dB is not None:
        if dA is None:
            D[:r].copy_(adapter.start("A"))
        else:
            torch.add(adapter.start("A"), dA, out=D[:r])
        U[:, :r].copy_(dB)
        at = r
    if dA is not None:
        D[at : at + r].copy_(dA)
        U[:, at : at + r].copy_(adapter.start("B"))


def _split(adapter: LowRankAdapter, k: int, gD: Any, gU: Any, gC: Any) -> list[Tensor]:
    """The gradients of one adapter's trained tensors, in the order B, M, A."""
    grads = []
    for name in "BMA":
        if name not in adapter.trainable:
            continue
        leaf = adapter.start(name)
        if name == "B":
            grads.append(gU[k, :, : leaf.shape[1]])
        elif name == "M":
            grads.append(core.values_at(adapter.core(adapter.start(name)), gC[k]))
        else:
            r = leaf.shape[0]
            grad = gD[k, :r].to(leaf.dtype)
            if adapter.carries and "B" in adapter.trainable:
                grad = grad + gD[k, r : 2 * r].to(leaf.dtype)
            grads.append(grad)
    return grads
