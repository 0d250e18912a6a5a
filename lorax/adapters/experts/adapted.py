"""AdaptedExpert: one expert's matrix with its adapters; the module that holds all experts computes with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lorax.adapters.experts.find import ExpertSlice
from lorax.adapters.linear import AdaptedLinear
from lorax.adapters.low_rank import LowRankAdapter
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.layer_adapter import LayerAdapter
    from lorax.adapters.pack_state import PackState


class AdaptedExpert(AdaptedLinear):
    """An expert's (m, n) matrix, part of a 3-D parameter, and the adapters of one or more lanes.

    It is never called: `ExpertsForward` puts W' in the parameter's place while the experts run.

    Args:
        base: the expert.
        adapters: {lane: adapter}, low-rank, without dropout.
        pack: the run-time state shared by all layers.
        name: "<module>.<parameter>.<e>".
    """

    owner: nn.Module

    def __init__(self, base: ExpertSlice, adapters: Mapping[int, LayerAdapter], pack: PackState, name: str):
        for adapter in adapters.values():
            if not isinstance(adapter, LowRankAdapter):
                raise UserError(f"{name}: {type(adapter).__name__} needs a layer that is called; experts are a weight")
            if adapter.q:
                raise UserError(
                    f"dropout={adapter.q / 256:.2g} at {name}: an expert's weight has no input of its own to drop; "
                    "use dropout=0, or leave the experts out of targets"
                )
        if len(pack.lanes) > 1 and not base.takes_lanes:
            kind = type(base.owner).__name__
            raise UserError(
                f"{name}: {kind} sorts its rows by expert, so that lanes cannot share it; train one run alone"
            )
        super().__init__(base, adapters, pack, name)
        del self._parameters["weight"]  # it stays the owner's
        self.__dict__["owner"] = base.owner
        self.parameter, self.index = base.parameter, base.index

    @property
    def stack(self) -> nn.Parameter:
        """All experts' weights."""
        return cast(nn.Parameter, self.owner._parameters[self.parameter])

    @property
    def acts_in(self) -> nn.Module:
        """The module that holds all experts."""
        return self.owner

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a view of its owner's parameter
        """The expert's own part, as stored."""
        return self.stack[self.index]

    def forward(self, x: Tensor) -> Tensor:
        """Refuse: the experts are called together.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.name} is one expert's weight: call {type(self.owner).__name__}, which holds them all")

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Compute with W0 for a while."""
        now = self._write(self.start())
        try:
            yield
        finally:
            self._put(now)

    @torch.no_grad()
    def _write(self, matrix: Tensor) -> Tensor:
        """Replace the expert's matrix by another (m, n) and return the old one, as stored."""
        old = self.weight.detach().clone()
        self.weight.copy_(self.kind.store(matrix))
        return old

    @torch.no_grad()
    def _put(self, stored: Tensor | None) -> None:
        if stored is not None:
            self.weight.copy_(stored)
