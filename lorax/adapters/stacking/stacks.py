"""Stacks: which of the lanes that train together are held in one buffer, and how their layers find it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorax.adapters.adapted import in_reference_mode
from lorax.adapters.handle import Adapters
from lorax.adapters.linear import AdaptedLinear
from lorax.adapters.low_rank import LowRankAdapter
from lorax.adapters.stacking.cores import CoresAt, StackedCores, core_key
from lorax.adapters.stacking.factors import StackedFactors
from lorax.adapters.stacking.layer import FactorsAt

if TYPE_CHECKING:
    from lorax.adapters.face import Trainable
    from lorax.adapters.fused.function import Grouping

MOST_PADDING = 4
"""Lanes share a buffer as long as it is at most this many times as large as what they train."""
Stacked = StackedFactors | StackedCores


class Stacks:
    """The buffers of lanes that train together; `PackState.stacks` while their losses are differentiated.

    Args:
        trained: the lanes, in the order of their row blocks.
        without: layers that are not held.
    """

    def __init__(self, trained: Sequence[Trainable], without: Iterable[str] = ()):
        self.groupings: dict[Any, Grouping] = {}
        """How layers compute while these are held."""
        self.buffers: list[Stacked] = []
        self.members: list[list[int]] = []
        """Of each buffer its lanes: their places in `trained`, ascending."""
        for kind, members in _families(trained, frozenset(without)):
            for places in _fitting(members) if kind is StackedFactors else [sorted(members)]:
                self.buffers.append(kind([members[place] for place in places]))
                self.members.append(places)

    def at(self, layer: str, positions: Mapping[int, int], count: int) -> list[FactorsAt | CoresAt]:
        """Return the parts of a layer whose lanes are all active.

        Args:
            layer: its name.
            positions: {id of an adapter: its position among the active lanes}.
            count: number of active lanes.
        """
        parts: list[FactorsAt | CoresAt] = []
        for buffer in self.buffers:
            if layer not in buffer.layers:
                continue
            places = [positions.get(id(lane[layer])) for lane in buffer.adapters]
            known = [place for place in places if place is not None]
            if len(known) == len(places):
                cls: Callable[..., Any] = FactorsAt if isinstance(buffer, StackedFactors) else CoresAt
                parts.append(cls(buffer, layer, known, count))
        return parts

    def start(self) -> None:
        """Begin a step."""
        for buffer in self.buffers:
            buffer.start()

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Let a forward and backward pass depend on no other: it derives all that it needs and leaves nothing behind.

        Then it can be recorded, and replayed before or after any other.
        """
        for buffer in self.buffers:
            buffer.derive_anew()
        yield
        for buffer in self.buffers:
            buffer.gather()

    def reached(self) -> list[set[str]]:
        """Return, for each buffer, the layers that backward passes of this step went through."""
        return [set(buffer.reached) for buffer in self.buffers]

    def reach(self, layers: Sequence[set[str]]) -> None:
        """Take note of a pass that was replayed; see `reached`."""
        for buffer, each in zip(self.buffers, layers, strict=True):
            buffer.reached |= each

    def unreached(self) -> list[str]:
        """Return the layers of a buffer that no backward pass of the step went through: they must not be updated."""
        return sorted({layer for buffer in self.buffers for layer in buffer.unreached()})

    def complete(self) -> None:
        """Make the gradients those of the parameters; once a step, after the losses' backward passes."""
        for buffer in self.buffers:
            buffer.complete()

    def release(self) -> None:
        """Give all parameters memory of their own again."""
        for buffer in self.buffers:
            buffer.release()
        self.buffers, self.members = [], []
        self.groupings.clear()


_Members = dict[int, dict[str, LowRankAdapter]]


def _families(trained: Sequence[Trainable], without: frozenset[str]) -> list[tuple[type[Stacked], _Members]]:
    """Return the lanes that are alike, {place: {layer: adapter}}, by the layers that can be held."""
    if in_reference_mode():
        return []
    found: dict[Hashable, _Members] = {}
    kinds: dict[Hashable, type[Stacked]] = {}
    fused = _fused_layers(trained)
    for place, adapters in enumerate(trained):
        mine = {name: each for name, each in adapters.layer_adapters().items() if name in fused - without}
        for cls, key_of in ((StackedFactors, _factor_key), (StackedCores, core_key)):
            fitting = {
                name: (each, key_of(each))
                for name, each in mine.items()
                if isinstance(each, LowRankAdapter) and not _hooked(each) and key_of(each) is not None
            }
            if fitting:
                place_of = {(each.start("A").device, each.start("A").dtype) for each, _ in fitting.values()}
                if len(place_of) == 1:
                    key = (cls, *place_of, *((name, key) for name, (_, key) in fitting.items()))
                    kinds[key] = cls
                    found.setdefault(key, {})[place] = {name: each for name, (each, _) in fitting.items()}
                    break  # a lane lies in one buffer
    alone = len(trained) == 1  # a shared basis of one lane has a form of its own: `SharedBasisGroup.whole`
    return [(kinds[key], members) for key, members in found.items() if kinds[key] is StackedFactors or not alone]


def _fused_layers(trained: Sequence[Trainable]) -> set[str]:
    """Return the layers that every lane computes by the fused form."""
    names: dict[str, bool] = {}
    for adapters in trained:
        for name, adapter in adapters.layer_adapters().items():
            layer = adapters.layer(name) if isinstance(adapters, Adapters) else None
            fuses = isinstance(layer, AdaptedLinear) and layer.fuses and adapter.fusible
            names[name] = names.get(name, True) and fuses
    return {name for name, fuses in names.items() if fuses}


def _factor_key(adapter: LowRankAdapter) -> Hashable | None:
    folded = adapter.shifts_base and not adapter.carries
    identity = adapter.header["kind"] == "identity" and adapter.trainable == {"A", "B"}
    return (adapter.start("B").shape[0], adapter.start("A").shape[1]) if identity and not folded else None


def _hooked(adapter: LowRankAdapter) -> bool:
    """Whether somebody changes a parameter's gradient where autograd hands it over."""
    return any(parameter._backward_hooks for parameter in adapter.trained().values())


def _fitting(members: _Members) -> list[list[int]]:
    """Return the lanes in parts that waste little memory, those of high rank first."""
    ranks = {place: max(each.rank for each in lane.values()) for place, lane in members.items()}
    parts: list[list[int]] = []
    for place in sorted(ranks, key=lambda place: (-ranks[place], place)):
        last = parts[-1] if parts else []
        total = sum(ranks[other] for other in [*last, place])
        if last and ranks[last[0]] * (len(last) + 1) <= MOST_PADDING * total:
            last.append(place)
        else:
            parts.append([place])
    return [sorted(part) for part in parts]
