"""Lanes of small rank: all of them as one padded pair of products.

For lane k, with s_k = eta_k (times the dropout scale) and x_k its rows,

    h_k = s_k * drop(x_k) D_k^T        D: (K, R, n)
    y_k += h_k C_k^T U_k^T             U: (K, m, R), C: (K, R, R) where a lane has a core

D_k, U_k hold A_k, B_k; for a carried lane [A ; dA] and [dB, B0], the telescoped difference.
Rows and columns beyond a lane's rank are zero, which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorax.adapters import core
from lorax.adapters.fused.blocks import Rows, keep, product
from lorax.adapters.layer_adapter import Lane


@dataclass
class Stack:
    """The stacked factors of one call, in the dtype of its products; of a single lane without the first dim."""

    D: Tensor
    U: Tensor
    C: Tensor | None


class Thin:
    """The small-rank lanes of a layer.

    Args:
        lanes: (position among the active lanes, adapter).
        count: number of active lanes.
    """

    def __init__(self, lanes: list[tuple[int, Lane]], count: int):
        self.lanes = [lane for _, lane in lanes]
        self.rows = Rows([position for position, _ in lanes], count)
        self.leaves = [leaf for lane in self.lanes for leaf in lane.trained().values()]
        self.cored = any(lane.header["kind"] != "identity" for lane in self.lanes)
        self.widths = [_width(lane) for lane in self.lanes]
        self.R = max(max(pair) for pair in self.widths)
        trained = [lane.trainable for lane in self.lanes]
        self.trains = {name: any(name in one for one in trained) for name in "ABM"}
        self.one = len(self.lanes) == 1
        self.carried = _alike(self.lanes)
        self._kept: tuple[object, Stack] | None = None
        self._scales: dict[tuple, Tensor] = {}

    def stack(self, dtype: torch.dtype, steady: object | None) -> Stack:
        """Return the stacked factors; `steady` names a time in which no trained tensor changes."""
        key = (steady, dtype)
        if steady is not None and self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        built = self._build(dtype)
        self._kept = (key, built) if steady is not None else None
        return built

    def _build(self, dtype: torch.dtype) -> Stack:
        D, U = self._uneven(dtype) if self.carried is None else self._even(dtype)
        return Stack(D, U, self._cores(D) if self.cored else None)

    def _even(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return D and U of lanes that are alike in shape and form: a few calls for all of them."""
        if not self.carried:
            A, B = self._all("A"), self._all("B")
            return A.to(dtype), B.to(dtype)
        A, dA, B, dB = self._all("A0"), self._all("dA"), self._all("B0"), self._all("dB")
        return torch.cat([A + dA, dA], -2).to(dtype), torch.cat([dB, B], -1).to(dtype)

    def _all(self, name: str) -> Tensor:
        """Return one tensor of every lane, stacked; of a single lane as it is."""
        own = [getattr(lane, name) for lane in self.lanes]
        return own[0] if self.one else torch.stack(own)

    def _uneven(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return D and U of lanes of any rank and form, zero beyond each lane's own."""
        A, B = self.lanes[0].start("A"), self.lanes[0].start("B")
        D = A.new_zeros((len(self.lanes), self.R, A.shape[1]), dtype=dtype)
        U = A.new_zeros((len(self.lanes), B.shape[0], self.R), dtype=dtype)
        for lane, own_D, own_U in zip(self.lanes, D.unbind(), U.unbind(), strict=True):
            _fill(lane, own_D, own_U)
        return (D[0], U[0]) if self.one else (D, U)

    def _cores(self, like: Tensor) -> Tensor:
        C = torch.eye(self.R, dtype=like.dtype, device=like.device).repeat(len(self.lanes), 1, 1)
        for k, lane in enumerate(self.lanes):
            if lane.header["kind"] != "identity":
                matrix = core.dense(lane.core(lane.current("M").detach()), 0, like)
                C[k] = 0
                C[k, : matrix.shape[0], : matrix.shape[1]] = matrix
        return C[0] if self.one else C

    def scales(self, each: list[float], like: Tensor) -> Tensor | float:
        """Return s_k by lane: one number where all agree, else a (K, 1, 1) tensor."""
        if self.one:
            return each[self.rows.positions[0]]
        own = [each[position] for position in self.rows.positions]
        if len(set(own)) == 1:
            return own[0]
        key = (*own, like.dtype, like.device)
        if key not in self._scales:
            with torch.inference_mode(False):
                self._scales = {key: like.new_tensor(own)[:, None, None]}
        return self._scales[key]

    def forward(
        self, x3: Tensor, out3: Tensor, stack: Stack, each: list[float], drawn: Tensor | None
    ) -> list[Tensor | None]:
        """Add the lanes' outputs to `out3` in place; return what `backward` needs.

        Args:
            x3: (K_active, T, n).
            out3: (K_active, T, m).
            stack: from `stack`.
            each: s of every active lane.
            drawn: (K, T, n) random bytes of the dropout masks; None without dropout.
        """
        x = self._take(x3)
        h = product(x if drawn is None else self._keep(drawn, x.dtype).mul_(x), stack.D.mT)
        h *= self.scales(each, h)
        self._add(out3, h if stack.C is None else product(h, stack.C.mT), stack.U.mT)
        return [x if self.trains["A"] else None, h, stack.D, stack.U, stack.C, drawn]

    def backward(
        self, saved: list[Tensor | None], each: list[float], g3: Tensor, dx3: Tensor | None
    ) -> list[Tensor | None]:
        """Add the input's gradient to `dx3` in place; return the gradients of `leaves`."""
        x, h, D, U, C, drawn = saved
        g = self._take(g3)
        gh2 = product(g, U)
        gC = product(gh2.mT, h) if self.trains["M"] else None
        gh = gh2 if C is None else product(gh2, C)
        gh *= self.scales(each, gh)
        mask = None if drawn is None else self._keep(drawn, gh.dtype)
        own_h, own_gh = self._narrowed(h if C is None else product(h, C.mT), gh)
        # (h^T g)^T, since BLAS is about twice as slow with the wide operand transposed.
        gU = product(own_h.mT, g).mT if self.trains["B"] else None
        gD = product(own_gh.mT, x if mask is None else x * mask) if self.trains["A"] else None
        if dx3 is not None and mask is None:
            self._add(dx3, gh, D)
        elif dx3 is not None:
            add = product(gh, D)
            self.rows.accumulate(dx3, add[None] if self.one else add, mask)
        return self._split(gD, gU, gC)

    def _narrowed(self, h: Tensor, gh: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and its gradient, of lanes alike and carried only as wide as what trains.

        U = [dB, B0] and D = [A0 + dA ; dA]: dB needs the first half of h, and dA gets
        (gh_1 + gh_2)^T x, one product instead of two.
        """
        if not self.carried:
            return h, gh
        r = self.R // 2
        return h[..., :r], gh[..., :r] + gh[..., r:]

    def _split(self, gD: Tensor | None, gU: Tensor | None, gC: Tensor | None) -> list[Tensor]:
        """Return the gradients of `leaves`."""
        if self.carried is not None:
            if self.one:
                return [gU, gD]
            return [grad for pair in zip(gU.unbind(), gD.unbind(), strict=True) for grad in pair]
        gD, gU, gC = (grad[None] if self.one and grad is not None else grad for grad in (gD, gU, gC))
        return [grad for k, lane in enumerate(self.lanes) for grad in _split(lane, k, gD, gU, gC)]

    def _take(self, x3: Tensor) -> Tensor:
        """Return the group's rows: (K, T, n), of a single lane (T, n)."""
        return x3[self.rows.positions[0]] if self.one else self.rows.take(x3)

    def _keep(self, drawn: Tensor, dtype: torch.dtype) -> Tensor:
        masks = keep(drawn, self.lanes, dtype)
        return masks[0] if self.one else masks

    def _add(self, out3: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b to the group's rows of `out3`, in place."""
        if self.one:
            out3[self.rows.positions[0]].addmm_(a, b)
        else:
            self.rows.add(out3, a, b)


def _alike(lanes: list[Lane]) -> bool | None:
    """Return whether lanes that are alike in rank and form, with A and B trained and no core, are carried.

    None where they are not alike.
    """
    kinds = {(lane.carries, lane.start("A").shape, lane.start("B").shape) for lane in lanes}
    plain = all(lane.header["kind"] == "identity" and lane.trainable == {"A", "B"} for lane in lanes)
    split = any(lane.shifts_base and not lane.carries for lane in lanes)  # folded: trained as differences
    return next(iter(kinds))[0] if len(kinds) == 1 and plain and not split else None


def _width(lane: Lane) -> tuple[int, int]:
    """Rows of D and columns of U that a lane takes."""
    if not lane.carries:
        return lane.start("A").shape[0], lane.start("B").shape[1]
    r = lane.rank * len(lane.trainable & {"A", "B"})
    return r, r


def _fill(lane: Lane, D: Tensor, U: Tensor) -> None:
    if not lane.carries:
        A, B = lane.current("A"), lane.current("B")
        D[: A.shape[0]].copy_(A)
        U[:, : B.shape[1]].copy_(B)
        return
    r, dA, dB = lane.rank, lane.change("A"), lane.change("B")
    at = 0
    if dB is not None:
        if dA is None:
            D[:r].copy_(lane.start("A"))
        else:
            torch.add(lane.start("A"), dA, out=D[:r])
        U[:, :r].copy_(dB)
        at = r
    if dA is not None:
        D[at : at + r].copy_(dA)
        U[:, at : at + r].copy_(lane.start("B"))


def _split(lane: Lane, k: int, gD: Tensor | None, gU: Tensor | None, gC: Tensor | None) -> list[Tensor]:
    """The gradients of one lane's trained tensors, in the order B, M, A."""
    grads = []
    for name in "BMA":
        if name not in lane.trainable:
            continue
        leaf = lane.start(name)
        if name == "B":
            grads.append(gU[k, :, : leaf.shape[1]])
        elif name == "M":
            grads.append(core.pick(lane.core(lane.start(name)), gC[k]))
        else:
            r = leaf.shape[0]
            grad = gD[k, :r].to(leaf.dtype)
            if lane.carries and "B" in lane.trainable:
                grad = grad + gD[k, r : 2 * r].to(leaf.dtype)
            grads.append(grad)
    return grads
