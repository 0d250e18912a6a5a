"""ExpertsForward: a module of experts computes with W'[e] = W[e] + eta B_e M_e A_e in its parameters' places.

The module's own forward runs unchanged, whichever of transformers' implementations it picks. All experts' W' are
made in one batched product; in 16-bit floats they are rounded as after a merge. It costs one copy of the
parameter while the module's graph lives, and is kept between calls where factors are frozen.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorax.adapters.experts.adapted import AdaptedExpert
from lorax.adapters.low_rank import LowRankAdapter
from lorax.adapters.routed.gathered import added_pair
from lorax.errors import UserError


class ExpertsForward:
    """What stands in the place of `owner.forward`.

    Args:
        owner: the module that holds the experts' parameters.
        layers: its adapted experts.
    """

    def __init__(self, owner: nn.Module, layers: Iterable[AdaptedExpert]):
        self.owner = owner
        self.experts: dict[str, list[AdaptedExpert]] = {}
        for layer in layers:
            self.experts.setdefault(layer.parameter, []).append(layer)
        self.pack = next(iter(self.experts.values()))[0].pack
        self._before: Any = None
        """The forward that the instance had of its own, such as a device hook's."""
        self._kept: dict[tuple[str, int], tuple[object, Tensor]] = {}

    def put(self) -> None:
        """Take the place of the module's forward, and put the adapted experts below it."""
        self._before = vars(self.owner).get("forward")
        for parameter, layers in self.experts.items():
            # beside the parameter of the same name: the keys of base and adapters then are those of a linear layer
            self.owner._modules[parameter] = nn.ModuleDict({str(layer.index): layer for layer in layers})
        self.owner.forward = self

    def take_off(self) -> None:
        """Give the module back as it was."""
        for parameter in self.experts:
            self.owner._modules.pop(parameter, None)
        vars(self.owner).pop("forward", None)
        if self._before is not None:
            self.owner.forward = self._before
        self._kept.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, each active lane on its block of rows with its own W'."""
        lanes = self.pack.lanes
        if self.pack.routing is not None:
            raise UserError(f"{self.name}: experts take rows in equal blocks, not routed ones")
        if len(lanes) == 1:
            return self._run(lanes[0], args, kwargs)
        rows = args[0].shape[0]
        if rows % len(lanes):
            raise UserError(f"{self.name}: {rows} rows do not divide into {len(lanes)} lanes")
        blocks = []
        for k, lane in enumerate(lanes):
            own = [_block(value, rows, k, len(lanes)) for value in args]
            blocks.append(self._run(lane, own, {key: _block(v, rows, k, len(lanes)) for key, v in kwargs.items()}))
        return torch.cat(blocks)

    @property
    def name(self) -> str:
        """The module's name in the model."""
        first = next(iter(self.experts.values()))[0]
        return first.name.removesuffix(f".{first.parameter}.{first.index}")

    def _run(self, lane: int, args: Iterable[Any], kwargs: dict[str, Any]) -> Any:
        inner = self._before or MethodType(type(self.owner).forward, self.owner)
        weights = {key: W for key in self.experts if (W := self.weight(key, lane)) is not None}
        own = vars(self.owner)
        own.update(weights)  # found before the parameter of the same name
        try:
            return inner(*args, **kwargs)
        finally:
            for key in weights:
                del own[key]

    def weight(self, parameter: str, lane: int) -> Tensor | None:
        """Return all experts' W' of a lane, as the parameter is stored; None where nothing is added."""
        key, frozen = (parameter, lane), self.pack.frozen_key
        keeps = frozen is not None and not torch.is_grad_enabled()
        if keeps and key in self._kept and self._kept[key][0] is frozen:
            return self._kept[key][1]
        self._kept.pop(key, None)
        present = [(layer, cast(LowRankAdapter, a)) for layer in self.experts[parameter] if (a := layer.adapter(lane))]
        if not present:
            return None
        stack = cast(Tensor, self.owner._parameters[parameter])
        with torch.autocast(stack.device.type, enabled=False):  # the weight is not rounded where the base's is not
            W = _updated(stack, present)
        if keeps:
            self._kept[key] = (frozen, W)
        return W


def _updated(stack: Tensor, present: list[tuple[AdaptedExpert, LowRankAdapter]]) -> Tensor:
    """Return the experts' weights, (E, ...), each adapted one with its update."""
    pairs = [added_pair(adapter) for _, adapter in present]
    turned = present[0][0].kind.transposed
    if len({B.shape for B, _ in pairs}) == 1:
        left, right = torch.stack([B for B, _ in pairs]).to(stack.dtype), torch.stack([A for _, A in pairs])
        right = right.to(stack.dtype)
        if turned:
            left, right = right.mT, left.mT
        if len(present) == len(stack):
            return torch.baddbmm(stack, left, right)
        update = torch.bmm(left, right)
    else:
        products = [(B.to(stack.dtype) @ A.to(stack.dtype)) for B, A in pairs]
        update = torch.stack([product.mT if turned else product for product in products])
    chosen = torch.tensor([layer.index for layer, _ in present], device=stack.device)
    return stack.index_add(0, chosen, update)


def _block(value: Any, rows: int, k: int, count: int) -> Any:
    """Return a lane's rows of an argument that has rows."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
        return value[k * (rows // count) : (k + 1) * (rows // count)]
    return value
