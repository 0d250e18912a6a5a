"""What the rest of the package may ask of adapters, and of the methods behind them; needs no torch to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lorax.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lorax.adapters.layer_adapter import LayerAdapter
    from lorax.adapters.pack_state import PackState
    from lorax.adapters.selection.coverage import Coverage

Share = Callable[[str, "Tensor"], "Tensor"]
"""share(name, tensor) -> the one copy of this frozen tensor that all lanes of a layer use."""


class Trainable(Protocol):
    """What training, scoring and saving ask: low-rank adapters, full fine-tuning, a frozen base, a head alone."""

    kind: str
    """adapter | full | none | head: what saved files call it; only the reading of a file depends on it."""
    dropout: float
    number: int
    """The lane: the run's index into its pack; 0 where it is alone."""
    info: dict[str, Any]
    """Plain data that travels with `save`."""
    generator: torch.Generator | None
    """Where dropout seeds come from."""
    coverage: Coverage | None
    """Which share of the model is trained, what is left out and why; None: not asked for."""
    rule: TrainingRule | None
    """What the method does around each step."""

    @property
    def model(self) -> nn.Module:
        """The model on which they are installed."""
        ...

    @property
    def merged(self) -> bool:
        """Whether W' is in the stored weights now."""
        ...

    @property
    def pack(self) -> PackState | None:
        """The state shared by all lanes of a base; None where there are no adapted layers."""
        ...

    def names(self) -> list[str]:
        """Return the trained layers' names, sorted."""
        ...

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by name."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains, in the order of names."""
        ...

    def train_whole(self, parameters: Iterable[str]) -> None:
        """Let parameters of the model itself train too, by their names."""
        ...

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the groups of an optimiser for a loop of one's own."""
        ...

    def count_trainable(self) -> int:
        """Return how many numbers train."""
        ...

    def layer_adapters(self) -> Mapping[str, LayerAdapter]:
        """Return {layer name: adapter}, sorted by name; empty where there are none."""
        ...

    def eta(self) -> dict[str, float]:
        """Return the scale of every layer that has one."""
        ...

    def report(self) -> dict[str, dict[str, float]]:
        """Return what the initialiser reported about every layer."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on or off."""
        ...

    def eval(self) -> Any:
        """Switch dropout off."""
        ...

    def delta(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return W' - W0 by layer, (m, n), float32."""
        ...

    def frozen_weight(self, name: str) -> Tensor:
        """Return W_fz of a layer, (m, n)."""
        ...

    def merge(self) -> Any:
        """Put W' into the stored weights."""
        ...

    def unmerge(self) -> Any:
        """Undo `merge` bit for bit."""
        ...

    def detach(self) -> nn.Module:
        """Leave the model as it was, bit for bit, and return it."""
        ...

    def disabled(self) -> AbstractContextManager[None]:
        """Compute with the base model for a while."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor that a checkpoint must hold."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned, bit for bit."""
        ...

    def save(self, path: str | Path, quiet: bool = False, rank: int | None = None) -> int:
        """Write a folder that `lorax.load` reads, where a rank is given cut to it; return its bytes."""
        ...


@dataclass(frozen=True)
class Step:
    """Where a run's training stands."""

    index: int
    """0 ... total - 1."""
    total: int
    """Optimiser steps of the run."""
    generator: torch.Generator
    """The rule's own random state, from the run's seed; a checkpoint keeps it."""


class TrainingRule:
    """What a method does while it trains, beside the optimiser: subclass it and override what is needed.

    One instance belongs to one run. It may write to the tensors of its own adapters and must neither add nor
    remove one. Each method is called once in an optimiser step, however many micro-batches the step has. Random
    numbers are drawn from `step.generator`, which is the rule's own: a run gives the same result alone, in a pack
    and resumed, and paired runs draw the same whatever else they draw. Only `after_update` and `finish` are called
    under `torch.no_grad`; before them, write to trained tensors under one.
    """

    in_place: ClassVar[bool] = True
    """Whether it acts on the forward pass by writing to tensors in place alone: then recorded steps see what it does.
    False where it replaces tensors or sets Python values that layers read; steps then run eager."""

    of_batch: ClassVar[bool] = False
    """Whether `penalty` depends on what the forward pass computes. It is then asked after the forward pass of each
    micro-batch, before its backward pass, and the mean of these counts."""

    def before_forward(self, step: Step, adapters: Trainable) -> None:
        """Act before the step's forward passes. DyLoRA draws its rank here."""

    def penalty(self, adapters: Trainable) -> Tensor | None:
        """Return a scalar tensor that is added to the step's loss, or None.

        The record's curve shows it apart from the task's loss; the gradient norm and its bound include it.
        """
        return None

    def after_backward(self, step: Step, adapters: Trainable) -> None:
        """Act when the step's gradients are complete and not yet clipped."""

    def after_update(self, step: Step, adapters: Trainable) -> None:
        """Act after the optimiser's update; the clipped gradients are still in `.grad`."""

    def finish(self, adapters: Trainable) -> None:
        """Leave the adapters as they are to be used: called when training ends, however it ends."""

    def report(self) -> dict[str, Any]:
        """Return facts about the trained adapters for the record: numbers, texts, lists of them."""
        return {}

    def truncations(self) -> Sequence[int]:
        """Return the ranks below the whole one to which the trained adapters can be cut, ascending."""
        return ()

    def scored(self) -> Sequence[int]:
        """Return those of `truncations` at which a run is scored too: one evaluation more for each."""
        return ()

    def at_rank(self, adapters: Trainable, rank: int) -> AbstractContextManager[None]:
        """Compute with the first `rank` components for a while; asked where there are `truncations`.

        Raises:
            UserError: merged adapters, or a rank out of bounds.
        """
        raise UserError(f"rank {rank}: these adapters have one rank, their own")

    def cut(self, adapters: Trainable, rank: int) -> tuple[dict[str, Any], dict[str, LayerAdapter]]:
        """Return the info and the layers' adapters of those of rank `rank`, to be saved; asked as `at_rank`."""
        raise UserError(f"rank {rank}: these adapters have one rank, their own")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors, numbers, texts, lists and mappings of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; its tensors come back on the CPU."""


class LayerPlan(Protocol):
    """What an initialiser returns for one layer, as plain data; `Factors` is the usual one."""

    @property
    def shifts_base(self) -> bool:
        """Whether the frozen weight changes: W_fz = W0 - what the adapter adds at step 0."""
        ...

    def check_module(self, name: str, module: nn.Module) -> None:
        """Raise UserError where the plan does not fit the module; names layer, value and bound."""
        ...

    def count_trainable(self) -> int:
        """Return how many numbers train."""
        ...

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> LayerPlan:
        """Return the same plan in another dtype and place."""
        ...

    def build(self, *, fold: bool, dropout: float, share: Share) -> LayerAdapter:
        """Return the trainable module.

        Args:
            fold: the base weight loses the product of step 0 (asked of plans that shift the base only).
            dropout: probability on the adapter's input.
            share: stores a frozen tensor that all lanes of the layer may have in common.
        """
        ...


class LayerKind(Protocol):
    """How one class of modules holds and applies an (m, n) weight: one instance for each adapted module."""

    writable: bool
    """Whether a new weight can be written back; False: fold and merge refuse."""
    plain: bool
    """Whether the module computes x W^T + b on the last dim with the stored weight, so that fused forms apply."""
    transposed: bool
    """Whether the weight is stored as (n, m)."""

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (m, n) = (out, in); the weight may lie on the meta device."""
        ...

    def weight(self, module: nn.Module) -> Tensor:
        """Return the weight as (m, n), dequantised if need be; a view where possible, never kept."""
        ...

    def matrix(self, stored: Tensor) -> Tensor:
        """Return a tensor in the layout of the stored weight (its gradient, a copy of it) as (m, n).

        Of a writable kind, matrix(module.weight) is `weight(module)`: a factor that `forward` applies is in both.
        """
        ...

    def store(self, matrix: Tensor) -> Tensor:
        """Return an (m, n) matrix the way the module stores its weight."""
        ...

    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the module's own output; `module` has its weight and bias."""
        ...

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return x as rows, (..., n): what the matrix is applied to. A convolution unfolds patches."""
        ...

    def rows(self, output: Tensor) -> Tensor:
        """Return the module's output as rows, (..., m)."""
        ...

    def outputs(self, rows: Tensor, like: Tensor) -> Tensor:
        """Undo `rows`: give rows, (..., m), the shape of an output."""
        ...
