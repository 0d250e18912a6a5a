"""Installation: what installing changed in a model, and how it is undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.experts.adapted import AdaptedExpert
from lorax.adapters.experts.forward import ExpertsForward
from lorax.adapters.kinds import weight_of
from lorax.adapters.linear import AdaptedLinear
from lorax.adapters.pack_state import PackState
from lorax.errors import UserError


class Installation:
    """A model with adapted layers in the place of its own.

    Args:
        model: the model, changed in place.
        pack: the run-time state of its lanes.
    """

    def __init__(self, model: nn.Module, pack: PackState):
        self.model = model
        self.pack = pack
        self.layers: dict[str, AdaptedLayer] = {}
        self._originals: dict[str, nn.Module] = {}
        self._experts: list[ExpertsForward] = []
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._undo: list[Callable[[], None]] = []

    def freeze(self) -> None:
        """Let nothing of the base train."""
        for parameter, _ in self._flags:
            parameter.requires_grad_(False)

    def put(self, layers: dict[str, AdaptedLayer]) -> None:
        """Put adapted layers, beside earlier ones, wherever their originals stand, in several places where they do."""
        replacing = {name: layer for name, layer in layers.items() if not isinstance(layer, AdaptedExpert)}
        originals = {name: self.model.get_submodule(name) for name in replacing}
        self._originals |= originals
        self.layers |= layers
        _swap(self.model, [(originals[name], layer) for name, layer in replacing.items()])
        for site in self._experts:
            site.take_off()
        experts = [layer for layer in self.layers.values() if isinstance(layer, AdaptedExpert)]
        owners = {id(layer.owner): layer.owner for layer in experts}
        of_owner = {key: [layer for layer in experts if layer.owner is owner] for key, owner in owners.items()}
        self._experts = [ExpertsForward(owner, of_owner[key]) for key, owner in owners.items()]
        for site in self._experts:
            site.put()

    def on_restore(self, action: Callable[[], None]) -> None:
        """Call `action()` when the last run's adapters are removed."""
        self._undo.append(action)

    def remove(self, number: int) -> None:
        """Remove a lane's adapters; after the last ones the model is as it was."""
        self.pack.remove(number)
        for layer in self.layers.values():
            if str(number) in layer.lanes:
                del layer.lanes[str(number)]
            layer.forget()
        if self.pack.installed or not self.layers:
            return
        for layer in self.layers.values():
            if isinstance(layer, AdaptedExpert):
                layer.restore_weight()
        for site in self._experts:
            site.take_off()
        _swap(
            self.model, [(self.layers[name], self.layers[name].restore(base)) for name, base in self._originals.items()]
        )
        self.layers, self._experts = {}, []
        self._restore_flags()
        for action in reversed(self._undo):
            action()

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Have the replaced modules back for a while, computing with the weights as they are now."""
        pairs = [(self.layers[name], self.layers[name].current(base)) for name, base in self._originals.items()]
        _swap(self.model, pairs)
        for site in self._experts:
            site.take_off()
        try:
            yield
        finally:
            _swap(self.model, [(original, layer) for layer, original in pairs])
            for site in self._experts:
                site.put()

    def _restore_flags(self) -> None:
        now = list(self.model.parameters())
        moved = len(now) == len(self._flags) and any(a is not b for a, (b, _) in zip(now, self._flags, strict=True))
        for position, (parameter, flag) in enumerate(self._flags):
            (now[position] if moved else parameter).requires_grad_(flag)

    def refuse_tied(self, names: Iterable[str], verb: str) -> None:
        """Refuse to write into a weight that another parameter or module shares.

        Raises:
            UserError: names the layer and who shares its storage.
        """
        for name in names:
            layer = self.layers[name]
            if isinstance(layer, AdaptedLinear):
                layer.refuse_write(verb)
        named = list(self.model.named_parameters(remove_duplicate=False))
        places: dict[int, list[str]] = {}
        for name, module in self.model.named_modules(remove_duplicate=False):
            places.setdefault(id(module), []).append(name)
        checked: set[int] = set()
        for name in names:
            layer = self.layers[name]
            weight, names_of_it = weight_of(layer), {f"{place}.weight" for place in places[id(layer)]}
            if isinstance(layer, AdaptedExpert):
                weight, names_of_it = layer.stack, {place.rpartition(".")[0] for place in places[id(layer)]}
            if id(weight) in checked:
                continue
            checked.add(id(weight))
            other = next((o for o, p in named if o not in names_of_it and _overlap(p, weight)), None)
            if other is not None:
                way = "; use recenter='carry'" if verb.startswith("fold") else ", which would change with it"
                raise UserError(f"cannot {verb} {name}: its weight is shared with {other}{way}")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have memory in common (taken as one stretch each)."""
    if a.is_meta or b.is_meta or a.device != b.device:
        return False
    starts, sizes = (a.data_ptr(), b.data_ptr()), (a.numel() * a.element_size(), b.numel() * b.element_size())
    return starts[0] < starts[1] + sizes[1] and starts[1] < starts[0] + sizes[0]


def _swap(model: nn.Module, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Put the second of every pair wherever the first stands."""
    pairs = list(pairs)
    replacement = {id(old): new for old, new in pairs}
    # While a block is replaced it is not part of the model, but its children must change as its replacement's do.
    for parent in [*model.modules(), *(module for pair in pairs for module in pair)]:
        for key, child in parent._modules.items():
            if id(child) in replacement:
                parent._modules[key] = replacement[id(child)]
