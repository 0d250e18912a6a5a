"""Adapters: one run's adapters on a model, as one object."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters import core, weights
from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.face import TrainingRule
from lorax.adapters.factors import Factors
from lorax.adapters.installation import Installation
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.adapters.linear import AdaptedLinear
from lorax.adapters.linears.quantised import QuantisedKind, refuse_training
from lorax.adapters.pack_state import PackState
from lorax.adapters.selection.coverage import Coverage
from lorax.adapters.selection.whole import TrainedWhole
from lorax.errors import UserError, near


class Adapters:
    """The adapters of one run on a model; other runs may have theirs on the same base.

    Made by `install` (or `lorax.attach`). Full fine-tuning and a frozen base have the same methods
    (`lorax.adapters.face.Trainable`): `lorax.adapters.baselines`.

    Args:
        installation: the model with its adapted layers.
        number: the lane: the run's index into its pack; 0 for a run alone.
        recenter: carry | fold.
        dropout: probability on the adapters' input.
        info: how the adapters came to be (method, fields, seed), as plain data; travels with `save`.
    """

    kind = "adapter"

    def __init__(self, installation: Installation, number: int, recenter: str, dropout: float, info: dict[str, Any]):
        self.installation = installation
        self.number = number
        self.recenter = recenter
        self.dropout = dropout
        self.info = info
        self._layers: dict[str, AdaptedLayer] = {
            name: layer for name, layer in sorted(installation.layers.items()) if str(number) in layer.lanes
        }
        self._merged = False
        self.rates: dict[str, float] = {}
        """Learning rate of a tensor over the run's, by its letter, as the method has it (`lorax.attach`)."""
        self.rule: TrainingRule | None = None
        """What the method does around each step (`lorax.attach`)."""
        self.coverage: Coverage | None = None
        """Which share of the model is adapted, what is left out and why (`lorax.attach`)."""
        self._whole: TrainedWhole | None = None

    @property
    def model(self) -> nn.Module:
        """The model on which these adapters are installed."""
        return self.installation.model

    @property
    def pack(self) -> PackState:
        """The state shared by all lanes: `with adapters.pack.active([0, 2]): ...`."""
        return self.installation.pack

    @property
    def generator(self) -> torch.Generator | None:
        """Where dropout seeds come from; None: torch's global CPU generator."""
        return self.pack.generators.get(self.number)

    @generator.setter
    def generator(self, value: torch.Generator | None) -> None:
        self.pack.generators.pop(self.number, None)
        if value is not None:
            self.pack.generators[self.number] = value

    @property
    def merged(self) -> bool:
        """Whether W' is in the stored weights now."""
        return self._merged

    def layer(self, name: str) -> AdaptedLayer:
        """Return an adapted layer or module.

        Raises:
            UserError: no such layer; names the near ones.
        """
        if name not in self._layers:
            raise UserError(f"no adapted layer {name!r}; {near(name, self._layers)}")
        return self._layers[name]

    def linear(self, name: str) -> AdaptedLinear:
        """Return an adapted linear layer.

        Raises:
            UserError: no such layer, or an adapted module without a weight of its own.
        """
        layer = self.layer(name)
        if not isinstance(layer, AdaptedLinear):
            raise UserError(f"{name} is an adapted module, not a linear layer: it has no weight of its own")
        return layer

    def layer_adapter(self, name: str) -> LayerAdapter:
        """Return this run's adapter at a layer."""
        return self.layer(name).all_adapters()[self.number]

    def layer_adapters(self) -> dict[str, LayerAdapter]:
        """Return {layer name: this run's adapter there}, sorted by name."""
        return {name: layer.all_adapters()[self.number] for name, layer in self._layers.items()}

    def names(self) -> list[str]:
        """Return the adapted layers' names, sorted."""
        return list(self._layers)

    def train_whole(self, parameters: Iterable[str]) -> None:
        """Let parameters of the model itself train beside the adapters, as part of them (a classifier's head).

        They are in `parameters()`, counted, saved and loaded; `disabled` and `detach` put back what they were.

        Args:
            parameters: their names in the model; once, and with one lane.

        Raises:
            UserError: several lanes share the base, and so its parameters.
        """
        names = list(parameters)
        refuse_training(self.model, names)
        if not names:
            return
        self._refuse_other_lanes("train parameters of the base")
        self._whole = TrainedWhole(self.model, names)
        self.installation.on_restore(self._whole.restore)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained tensors as {"<layer>.<tensor>": parameter}; whole trained ones by the model's names."""
        trained = {
            f"{name}.{key}": parameter
            for name, adapter in self.layer_adapters().items()
            for key, parameter in adapter.trained().items()
        }
        return trained | (self._whole.named if self._whole is not None else {})

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained tensors, ordered by layer name, then B, M, A; those of a head come last."""
        return list(self.named_parameters().values())

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the groups of an optimiser for a loop of your own: the trained tensors by their rate.

        Args:
            lr: the run's learning rate; a tensor's is lr * `rates` of its letter.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters().items():
            letter = name.rpartition(".")[2].removeprefix("d")
            groups.setdefault(lr * self.rates.get(letter, 1.0), []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]

    def count_trainable(self) -> int:
        """Return how many numbers train."""
        return sum(parameter.numel() for parameter in self.parameters())

    def eta(self) -> dict[str, float]:
        """Return the scale of every layer that has one."""
        return {name: adapter.eta for name, adapter in self.layer_adapters().items() if adapter.eta is not None}

    def report(self) -> dict[str, dict[str, float]]:
        """Return what the initialiser reported about every layer."""
        return {name: dict(adapter.report) for name, adapter in self.layer_adapters().items()}

    def factors(self) -> dict[str, Factors]:
        """Return the current factors of every layer that has them, as data."""
        current = {name: adapter.factors() for name, adapter in self.layer_adapters().items()}
        return {name: factors for name, factors in current.items() if factors is not None}

    def train(self, mode: bool = True) -> Adapters:
        """Switch dropout of these adapters on or off, leaving the base model's own mode alone."""
        for adapter in self.layer_adapters().values():
            adapter.train(mode)
        return self

    def eval(self) -> Adapters:
        """Switch dropout of these adapters off."""
        return self.train(False)

    @torch.no_grad()
    def delta(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return W' - W0 by layer, (m, n) of the effective weight, as float32.

        Formed from the trained differences in the factors' precision; under `fold` the rounding of
        the stored weight is part of it, since W' is W_fz as stored plus the adapter.

        Args:
            names: some layers; None means all.

        Raises:
            UserError: an adapter that is no change of a weight.
        """
        by_layer, fold = self.layer_adapters(), self.recenter == "fold"
        with weights.own_precision(self.model):
            return {name: weights.delta(self.layer(name), by_layer[name], fold) for name in self._chosen(names)}

    @torch.no_grad()
    def frozen_weight(self, name: str) -> Tensor:
        """Return W_fz of a layer, (m, n), in the factors' precision.

        It is W0 - eta B0 M0 A0 for recentred factors, else W0.
        """
        with weights.own_precision(self.model):
            return weights.frozen_weight(self.linear(name), self.layer_adapters()[name], self.recenter == "fold")

    @torch.no_grad()
    def merge(self) -> Adapters:
        """Put W' into the stored weights, in the base's dtype; the forward then adds nothing.

        Raises:
            UserError: the base is shared (tied weights, or other lanes), or an adapter is no change of a weight.
        """
        if self._merged:
            return self
        self._refuse_detached("merge")
        self._refuse_other_lanes("merge")
        layers = {name: self.linear(name) for name in self._layers}
        self.installation.refuse_tied(layers, "merge")
        with weights.own_precision(self.model):
            weights.merge(layers.values(), self.number)
        self.pack.off.add(self.number)
        self._merged = True
        return self

    def unmerge(self) -> Adapters:
        """Undo `merge` bit for bit."""
        if self._merged:
            for name in self._layers:
                self.linear(name).unmerge()
            self.pack.off.discard(self.number)
            self._merged = False
        return self

    def detach(self) -> nn.Module:
        """Take these adapters off and return the model.

        When the last run's adapters go, the model is as it was, bit for bit: modules, keys, weights, requires_grad.
        """
        self.unmerge()
        self.installation.remove(self.number)
        self._layers, self._whole = {}, None
        return self.model

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Give these adapters' rows the base model's own output."""
        with ExitStack() as stack:
            if self._merged or self.recenter == "fold":
                for layer in self._layers.values():
                    if isinstance(layer, AdaptedLinear):
                        stack.enter_context(layer.as_before())
            if self._whole is not None:
                stack.enter_context(self._whole.disabled())
            was_off = self.number in self.pack.off
            self.pack.off.add(self.number)
            try:
                yield
            finally:
                if not was_off:
                    self.pack.off.discard(self.number)

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor of these adapters, trained and initial, as {"<layer>.<tensor>": tensor}."""
        state = {
            f"{name}.{key}": tensor.detach()
            for name, adapter in self.layer_adapters().items()
            for key, tensor in adapter.state_dict(keep_vars=True).items()
        }
        return state | {name: p.detach() for name, p in (self._whole.named if self._whole is not None else {}).items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned, bit for bit.

        Raises:
            UserError: another set of tensors, or another shape.
        """
        here = self.state_dict()
        if here.keys() != state.keys():
            odd = sorted(here.keys() ^ state.keys())
            raise UserError(f"the state has other tensors than these adapters: {', '.join(odd[:4])}")
        for key, tensor in here.items():
            if tensor.shape != state[key].shape:
                raise UserError(f"{key}: shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(state[key])

    def at_rank(self, rank: int) -> AbstractContextManager[None]:
        """Compute with the first `rank` components for a while: the model of that rank, which was trained too.

        `export_merged` within it writes that model.

        Args:
            rank: 1 to the stored one.

        Raises:
            UserError: adapters that were trained at one rank (DyLoRA's were at all), merged ones, or a rank out of
                bounds.
        """
        return self._ranks("at_rank").at_rank(self, rank)

    def _ranks(self, verb: str) -> TrainingRule:
        """Return the rule that knows lower ranks."""
        self._refuse_detached(verb)
        if self.rule is None or not self.rule.truncations():
            name = self.info.get("init", {}).get("name", "this method")
            raise UserError(f"{verb}: init={name} trains one rank; see `adapters.rule.truncations` of init=dylora")
        return self.rule

    def save(self, path: str | Path, quiet: bool = False, rank: int | None = None) -> int:
        """Write the adapters to a folder: `adapter.safetensors` and `adapter.json`.

        Trained parameters outside the adapters (a new head) travel along. `lorax.load` reads it back
        without repeating any decomposition.

        Args:
            path: the folder, made if missing.
            quiet: do not print the size.
            rank: write the first components alone, as adapters of that rank; as `at_rank`. None: all.

        Returns:
            Bytes written.

        Raises:
            UserError: as `at_rank`, where a rank is given; a folder that cannot be written.
        """
        from lorax.adapters.files.format import save

        self._refuse_detached("save")
        return save(self, path, quiet=quiet, cut=None if rank is None else self._ranks("save").cut(self, rank))

    def export_peft(
        self,
        path: str | Path,
        rank: int | None = None,
        verify: bool | Mapping[str, Any] | None = None,
        base: str | None = None,
        revision: str | None = None,
    ) -> dict[str, Any]:
        """Write a plain LoRA that `peft.PeftModel.from_pretrained(base, path)` loads on the untouched base.

        Adapters that were trained at lower ranks too (DyLoRA) are cut to `rank` as they were trained, others by SVD.
        See `lorax.exports.peft.export_peft`.
        """
        from lorax.adapters.files.export import adapted_model
        from lorax.exports.peft import export_peft

        self._refuse_detached("export")
        trained = self.rule is not None and rank in self.rule.truncations()
        with weights.own_precision(self.model), self.at_rank(rank) if trained and rank else nullcontext():
            written = export_peft(adapted_model(self), path, rank=rank, verify=verify, base=base, revision=revision)
        kinds = [layer.kind for layer in self._layers.values()]
        if held := sorted({kind.label for kind in kinds if isinstance(kind, QuantisedKind)}):
            where = "load it over the base quantised the same way"
            warnings.warn(f"exported from a quantised base ({', '.join(held)}): {where}", stacklevel=2)
        return written

    def export_merged(self, path: str | Path, verify: bool | None = None, tokenizer: Any = None) -> None:
        """Write a whole checkpoint of the model with W' in its weights, for plain `from_pretrained`.

        See `lorax.adapters.files.export.export_merged`.
        """
        from lorax.adapters.files.export import export_merged

        self._refuse_detached("export")
        export_merged(self, path, verify=verify, tokenizer=tokenizer)

    def _chosen(self, names: Iterable[str] | None) -> list[str]:
        return self.names() if names is None else [names] if isinstance(names, str) else list(names)

    def _refuse_detached(self, verb: str) -> None:
        if not self._layers:
            raise UserError(f"cannot {verb}: these adapters were detached, and are gone; {verb} before detach()")

    def _refuse_other_lanes(self, verb: str) -> None:
        if len(self.pack.installed) > 1:
            raise UserError(
                f"cannot {verb}: {len(self.pack.installed)} lanes share this base; detach() the others first"
            )

    def __repr__(self) -> str:
        kinds = sorted({core.describe(f.M)["kind"] for f in self.factors().values()})
        size = f"{len(self._layers)} layers, {self.count_trainable():,} trainable"
        return f"Adapters({size}, core {'/'.join(kinds)})" if kinds else f"Adapters({size})"

    def __str__(self) -> str:
        """Return what they are, and which share of the model they stand on."""
        return repr(self) if self.coverage is None else f"{self!r}\n{self.coverage}"
