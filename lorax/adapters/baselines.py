"""Baselines without factors, with the same methods as `Adapters`: everything trains, or nothing, or a new head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.experts.find import ExpertSlice, expert_layers, layers_of
from lorax.adapters.face import TrainingRule
from lorax.adapters.factors import Factors
from lorax.adapters.files.format import TENSORS, fingerprint, write
from lorax.adapters.kinds import effective, is_linear, oriented, weight_of
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.adapters.linears.quantised import refuse_training
from lorax.adapters.selection.coverage import Coverage
from lorax.errors import UserError, near


class FullModel:
    """Full fine-tuning: the weights themselves train; W0 is kept in main memory.

    Args:
        model: trained in place.
        targets: {name: module}: train only these modules' parameters. None: all parameters.
        info: plain data that `save` writes beside the tensors.
    """

    kind = "full"
    dropout = 0.0
    number = 0
    merged = False
    rule: TrainingRule | None = None
    """Nothing is done beside the optimiser."""
    pack: None = None
    """None: such a run shares its base with no other run."""

    def __init__(
        self,
        model: nn.Module,
        targets: dict[str, nn.Module] | None = None,
        info: dict[str, Any] | None = None,
    ):
        self.model = model
        self.info = dict(info or {})
        self.generator: torch.Generator | None = None
        self._detached = False
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self.coverage: Coverage | None = None
        layers = targets if targets is not None else {**dict(model.named_modules()), **expert_layers(model)}
        self._layers = {name: module for name, module in sorted(layers.items()) if is_linear(module)}
        chosen = self._choose(targets)
        self._named = {name: p for name, p in model.named_parameters() if id(p) in chosen}
        refuse_training(model, self._named if targets is not None else (name for name, _ in model.named_parameters()))
        for parameter, _ in self._flags:
            parameter.requires_grad_(id(parameter) in chosen)
        self._start = {name: p.detach().to("cpu", copy=True) for name, p in self._named.items()}
        self._places = {id(p): name for name, p in model.named_parameters(remove_duplicate=True) if id(p) in chosen}

    def train_whole(self, parameters: Iterable[str]) -> None:
        """Let further parameters of the model train (a classifier's head), as part of this."""
        named, parameters = dict(self.model.named_parameters()), list(parameters)
        refuse_training(self.model, parameters)
        for name in parameters:
            if name not in self._named:
                self._named[name] = named[name]
                named[name].requires_grad_(True)
                self._start[name] = named[name].detach().to("cpu", copy=True)
                self._places[id(named[name])] = name

    def _choose(self, targets: dict[str, nn.Module] | None) -> set[int]:
        if targets is None:
            return {id(p) for p in self.model.parameters() if p.is_floating_point()}
        return {id(p) for module in targets.values() for p in module.parameters(recurse=False)}

    def names(self) -> list[str]:
        """Return the trained linear layers, sorted."""
        return list(self._layers)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by the model's own names."""
        return dict(self._named)

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains."""
        return list(self._named.values())

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the one group of an optimiser for a loop of your own."""
        return [{"params": self.parameters(), "lr": lr}]

    def count_trainable(self) -> int:
        """Return how many numbers train."""
        return sum(parameter.numel() for parameter in self._named.values())

    def layer_adapters(self) -> dict[str, LayerAdapter]:
        """Return nothing: there are no adapters."""
        return {}

    def eta(self) -> dict[str, float]:
        """Return nothing: there is no scale."""
        return {}

    def report(self) -> dict[str, dict[str, float]]:
        """Return nothing: there is no initialiser."""
        return {}

    def factors(self) -> dict[str, Factors]:
        """Return nothing: there are no factors."""
        return {}

    def train(self, mode: bool = True) -> FullModel:
        """Nothing to switch: there is no dropout beside the model's."""
        return self

    def eval(self) -> FullModel:
        """Nothing to switch."""
        return self

    @torch.no_grad()
    def delta(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return W' - W0 of linear layers, (m, n), float32; differenced in float32 or better."""
        chosen = self.names() if names is None else [names] if isinstance(names, str) else list(names)
        return {name: self._delta(name) for name in chosen}

    def _delta(self, name: str) -> Tensor:
        now = effective(self._layer(name))
        kind = torch.promote_types(now.dtype, torch.float32)
        return (now.to(kind) - self.frozen_weight(name).to(device=now.device, dtype=kind)).to(torch.float32)

    def frozen_weight(self, name: str) -> Tensor:
        """Return W0 of a layer, (m, n): nothing is frozen, this is where training started."""
        module = self._layer(name)
        place = self._places.get(id(weight_of(module)))
        if place is None:
            return effective(module)
        return oriented(module, self._start[place])

    def _layer(self, name: str) -> nn.Module:
        if name not in self._layers:
            raise UserError(f"no trained layer {name!r}; {near(name, self._layers)}")
        return self._layers[name]

    def merge(self) -> FullModel:
        """Nothing to merge: the weights are W' already."""
        return self

    def unmerge(self) -> FullModel:
        """Nothing to undo."""
        return self

    def detach(self) -> nn.Module:
        """Put W0 and requires_grad back, bit for bit, and return the model."""
        self._put(self._start)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self._detached = True
        return self.model

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Compute with W0 for a while."""
        now = {name: parameter.data for name, parameter in self._named.items()}
        for name, parameter in self._named.items():
            parameter.data = self._start[name].to(device=parameter.device, dtype=parameter.dtype, copy=True)
        try:
            yield
        finally:
            for name, parameter in self._named.items():
                parameter.data = now[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the trained parameters and, as `start.<name>`, where they started."""
        starts = {f"start.{name}": value for name, value in self._start.items()}
        return {**{name: p.detach() for name, p in self._named.items()}, **starts}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned, bit for bit.

        Raises:
            UserError: another set of tensors.
        """
        here = self.state_dict()
        if here.keys() != state.keys():
            odd = sorted(here.keys() ^ state.keys())
            raise UserError(f"the state has other tensors than this model: {', '.join(odd[:4])}")
        for name, value in here.items():
            value.copy_(state[name])

    def save(self, path: str | Path, quiet: bool = False, rank: int | None = None) -> int:
        """Write the trained parameters to a folder that `lorax.load` reads; prints and returns the size.

        What else requires a gradient in the model now (a new head) travels along.

        Raises:
            UserError: it was detached: the model holds W0 again; a rank was given.
        """
        self._refuse_detached("save")
        if rank is not None:
            raise UserError(f"save: rank={rank}, but what was trained here has none")
        now = dict(self.model.named_parameters())
        state = {name: p.detach().clone() for name, p in now.items() if name in self._named or p.requires_grad}
        exchanged = {name.rpartition(".")[0] for name, p in self._named.items() if now.get(name) is not p}
        base = [name for name in self._layers if name not in exchanged]  # a new head is no part of it
        layers = {name: fingerprint(self.frozen_weight(name)) for name in base}
        header = {
            "kind": self.kind,
            "info": self.info,
            "heads": [],
            "layers": layers,
            "parameters": list(state),
        }
        return write(path, header, state, TENSORS, quiet)

    def export_peft(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Refuse: full fine-tuning and a frozen base are no low-rank adapters.

        Raises:
            UserError: always.
        """
        raise UserError(f"init={self.kind} has no low-rank form to export; export_merged writes the model")

    def export_merged(self, path: str | Path, verify: bool | None = None, tokenizer: Any = None) -> None:
        """Write the model as it is now; see `lorax.exports.merged.write_model`."""
        from lorax.exports.merged import write_model

        self._refuse_detached("export")
        write_model(self.model, path, verify, tokenizer)

    def _refuse_detached(self, verb: str) -> None:
        if self._detached:
            raise UserError(f"cannot {verb}: this was detached, the model is the base again; {verb} before detach()")

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(values[name])


class Frozen(FullModel):
    """The base model as it is. Nothing trains."""

    kind = "none"

    def __init__(self, model: nn.Module, info: dict[str, Any] | None = None):
        super().__init__(model, targets={}, info=info)


class HeadOnly(Frozen):
    """The base model as it is; what trains is the head that the caller put on it."""

    kind = "head"


def restore(model: nn.Module, header: dict[str, Any], state: dict[str, Tensor]) -> FullModel:
    """Rebuild a saved baseline on its model.

    Raises:
        UserError: the model lacks a saved parameter.
    """
    if header["kind"] == "none":
        return Frozen(model, header["info"])
    named = dict(model.named_parameters())
    for name, value in state.items():
        if name not in named or named[name].shape != value.shape:
            raise UserError(f"the saved model holds {name} {tuple(value.shape)}; {near(name, named)}")
    everything, modules = set(state) == set(named), layers_of(model)
    experts = {name: modules[name] for name in header["layers"] if isinstance(modules[name], ExpertSlice)}
    stacks = {name.rpartition(".")[0] for name in experts}
    owners = {name.rpartition(".")[0] for name in state if name not in stacks}
    targets = None if everything else {**{owner: modules[owner] for owner in owners}, **experts}
    full = FullModel(model, targets, header["info"])
    full._put(state)
    return full
