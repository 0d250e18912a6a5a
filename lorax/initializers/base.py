"""What an initialiser is, what it answers by default, and the fields that rank-r methods share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, Self

from lorax.errors import UserError, near

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorax.adapters.face import LayerPlan, Trainable, TrainingRule
    from lorax.probing.probe import Probe

SCALINGS = ("standard", "rslora")


class Initializer(Protocol):
    """A frozen dataclass that looks at one layer and returns data; nothing else knows the method.

    Its fields enter the run id. Derive from `Method`, or `Ranked`, which answer everything but
    `check`, `count` and the call.
    """

    name: ClassVar[str]
    """Set by `register`."""
    kind: ClassVar[str]
    """adapter | full | none | head: what saved files call it; code asks `trains`, `changes_layers`, `has_factors`."""
    trains: ClassVar[bool]
    """Whether a run of it has training steps."""
    changes_layers: ClassVar[bool]
    """Whether training changes what its target layers compute."""
    has_factors: ClassVar[bool]
    """Whether it returns factors; a method without them has `install` instead."""
    adapts: ClassVar[str]
    """linear: layers with an (m, n) weight; module: any submodule with one tensor in and out, named by targets;
    saved: the linear layers of an adapter on disk (`layers`)."""
    changes_weight: ClassVar[bool]
    """Whether what it trains is a change of a weight, one matrix for all inputs: it then merges and has spectra."""
    takes_saved: ClassVar[bool]
    """Whether it starts from adapters on disk, so that it cannot be built without a folder of one."""
    shared_by_tasks: ClassVar[tuple[str, ...]]
    """Tensors that the tasks of a group train as one by the method's own design, which is then for groups alone."""
    version: ClassVar[int]
    """To be raised when the code of the method gives other results: the run id holds version and fields, not code."""

    @property
    def needs(self) -> frozenset[str]:
        """What it looks at beyond the shape: "weight", "svd"; "gradient", "activations", both measured on `batches`."""
        ...

    @property
    def smallest(self) -> int:
        """The smallest min(m, n) of a weight that it serves: under "all-linear" smaller layers are left out."""
        ...

    @property
    def starts_at_base(self) -> bool:
        """Whether the adapted model is the base model at step 0; records and tables name the methods where not."""
        ...

    @property
    def layers(self) -> list[str] | None:
        """The names of the layers that it serves, adapted under "all-linear"; None: any layer."""
        ...

    @property
    def idle(self) -> frozenset[str]:
        """Fields without effect at the present values of the others: left out of the run id."""
        ...

    @property
    def lr_factor(self) -> float:
        """What the default learning rate is multiplied by at these fields; 1 at the method's defaults."""
        ...

    @property
    def rates(self) -> Mapping[str, float]:
        """{tensor's letter (B, M, A): its learning rate divided by the run's}; 1 where a letter is not named."""
        ...

    @property
    def sets_ranks(self) -> bool:
        """Whether it gives its layers ranks itself, so that none can be set by layer."""
        ...

    def rule(self) -> TrainingRule | None:
        """Return what the method does around each step of one run, or None."""
        ...

    def across(self, plans: Mapping[str, LayerPlan]) -> dict[str, LayerPlan]:
        """Return the plans after what is decided over all layers at once; a layer that is missing is not adapted."""
        ...

    def of_task(self, index: int) -> Initializer:
        """Return the method as it starts the adapters of a group's task of this number."""
        ...

    def __call__(self, probe: Probe) -> LayerPlan:
        """Return the factors of one layer; called for several layers at once, in threads."""
        ...

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError, naming layer, value and bound, where the method cannot serve an (m, n) weight."""
        ...

    def count(self, m: int, n: int) -> int:
        """Return the number of trained values on an (m, n) weight, in closed form."""
        ...

    def sites(self, model: nn.Module) -> Sequence[str]:
        """With adapts="module" only: names of the submodules where it stands under "all-linear"; none: name targets."""
        ...

    def plan(self, name: str, module: nn.Module, generator: torch.Generator) -> LayerPlan:
        """With adapts="module" only: return what stands at a submodule; random numbers are drawn from `generator`."""
        ...

    def install(
        self,
        model: nn.Module,
        targets: str | Sequence[str],
        head: Sequence[str] | None = None,
        info: dict[str, Any] | None = None,
    ) -> Trainable:
        """Without factors only: make trainable what trains, and return its handle; arguments as `lorax.attach`."""
        ...


class Method:
    """What an initialiser answers unless it says otherwise."""

    name: ClassVar[str]
    kind: ClassVar[str] = "adapter"
    trains: ClassVar[bool] = True
    changes_layers: ClassVar[bool] = True
    has_factors: ClassVar[bool] = True
    adapts: ClassVar[str] = "linear"
    changes_weight: ClassVar[bool] = True
    takes_saved: ClassVar[bool] = False
    shared_by_tasks: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1

    @property
    def needs(self) -> frozenset[str]:
        """Nothing beyond the shape."""
        return frozenset()

    @property
    def smallest(self) -> int:
        """No weight is too small."""
        return 1

    @property
    def starts_at_base(self) -> bool:
        """Step 0 is the base model."""
        return True

    @property
    def layers(self) -> list[str] | None:
        """It serves any layer."""
        return None

    @property
    def idle(self) -> frozenset[str]:
        """No field is without effect."""
        return frozenset()

    @property
    def lr_factor(self) -> float:
        """The default learning rate depends on no field."""
        return 1.0

    @property
    def rates(self) -> Mapping[str, float]:
        """All tensors learn at the run's rate."""
        return {}

    @property
    def sets_ranks(self) -> bool:
        """Ranks change where a rule may change them."""
        return self.rule() is not None

    def rule(self) -> TrainingRule | None:
        """Nothing beside the optimiser."""
        return None

    def across(self, plans: Mapping[str, LayerPlan]) -> dict[str, LayerPlan]:
        """Every layer is decided by itself."""
        return dict(plans)

    def of_task(self, index: int) -> Self:
        """All tasks start alike, as they would alone."""
        return self

    def sites(self, model: nn.Module) -> Sequence[str]:
        """No places of its own: `targets` names them."""
        return []

    def plan(self, name: str, module: nn.Module, generator: torch.Generator) -> LayerPlan:
        """Refuse: the method is called with a probe of a layer."""
        raise UserError(f"init={self.name} adapts linear layers, not {name} ({type(module).__name__})")

    def install(
        self,
        model: nn.Module,
        targets: str | Sequence[str],
        head: Sequence[str] | None = None,
        info: dict[str, Any] | None = None,
    ) -> Trainable:
        """Refuse: what a method with factors returns is installed by `lorax.adapters.install`."""
        raise UserError(f"init={self.name} has factors, which `lorax.attach` installs")


class Factorless(Method):
    """A baseline without factors: it has `install`, and accepts layers of every shape."""

    has_factors: ClassVar[bool] = False

    def check(self, name: str, m: int, n: int) -> None:
        """Accept every shape."""

    def __call__(self, probe: Probe) -> NoReturn:
        """Refuse."""
        raise UserError(f"layer {probe.name}: init={self.name} has no factors")


@dataclass(frozen=True, kw_only=True)
class Ranked(Method):
    """Fields and formulas that the rank-r methods share: eta = alpha / r, or alpha / sqrt(r) (rsLoRA)."""

    rank: int = 8
    """Inner dimension r."""
    alpha: float | None = None
    """Numerator of eta; None takes the method's published default (`default_alpha`, else the rank)."""
    scaling: str = "standard"
    """standard: eta = alpha / r; rslora: eta = alpha / sqrt(r) (arXiv:2312.03732)."""

    default_alpha: ClassVar[float | None] = 16.0

    def __post_init__(self) -> None:
        """Check the values and put the default alpha in place."""
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"rank={self.rank}: a positive whole number is needed")
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.default_alpha or self.rank))
        positive("alpha", self.alpha)
        one_of("scaling", self.scaling, SCALINGS)

    @property
    def eta(self) -> float:
        """The factor of B A in the forward."""
        return (self.alpha or 0.0) / (self.rank if self.scaling == "standard" else math.sqrt(self.rank))

    @property
    def smallest(self) -> int:
        """The rank: B and A have r directions each."""
        return self.rank

    @property
    def lr_factor(self) -> float:
        """Default learning rate over that at the method's default alpha: eta_default / eta.

        Under Adam a step of lr moves W' by about eta lr ||A||, so alpha acts like a learning rate where
        the factors' norms do not depend on eta.
        """
        return float(self.default_alpha or self.rank) / self.rank / self.eta

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError where the rank exceeds min(m, n)."""
        if self.rank > min(m, n):
            raise UserError(f"layer {name}: rank={self.rank} exceeds {min(m, n)}, min(m, n) of its {m}x{n} weight")

    def count(self, m: int, n: int) -> int:
        """Return r (m + n)."""
        return self.rank * (m + n)


def positive(field: str, value: Any) -> None:
    """Raise UserError unless `value` is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise UserError(f"{field}={value}: a finite number above 0 is needed")


def one_of(field: str, value: Any, options: tuple[str, ...]) -> None:
    """Raise UserError, with the near misses, unless `value` is one of `options`."""
    if value not in options:
        raise UserError(f"{field}={value} is unknown: {near(value, options)}")
