"""What an initialiser is, and the registry that finds them: every module of this folder, no list to keep."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lorax.errors import UserError, near

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe

SCALINGS = ("standard", "rslora")
NOT_FIELDS = frozenset({"name", "lr_prior"})  # keys of conf/init/<name>.yaml that are not the method's

_registry: dict[str, type] = {}


class Initializer(Protocol):
    """A frozen dataclass that looks at one layer and returns data; nothing else knows the method."""

    name: ClassVar[str]
    """Set by `register`."""
    kind: ClassVar[str]
    """adapter | full | none."""
    version: ClassVar[int]
    """Bumped when the meaning of the method changes: it enters the run id."""
    needs: frozenset[str]
    """What the probe must offer beyond the shape: "svd", "gradient", "activations" (those on `batches`)."""

    def __call__(self, probe: Probe) -> Factors:
        """Return the factors of one layer; called for several layers at once, each on a thread of its own."""
        ...

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError, naming layer, value and bound, where the method cannot serve an (m, n) weight."""
        ...

    def count(self, m: int, n: int) -> int:
        """Return the number of trained values on an (m, n) weight, in closed form."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Fields and formulas that the rank-r methods share: eta = alpha / r, or alpha / sqrt(r) (rsLoRA)."""

    rank: int = 8
    """Inner dimension r."""
    alpha: float | None = None
    """Numerator of eta; None takes the method's published default (`default_alpha`, else the rank)."""
    scaling: str = "standard"
    """standard: eta = alpha / r; rslora: eta = alpha / sqrt(r) (arXiv:2312.03732)."""

    kind: ClassVar[str] = "adapter"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()
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
        return self.alpha / (self.rank if self.scaling == "standard" else math.sqrt(self.rank))

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


def register(name: str) -> Callable[[type], type]:
    """Return a class decorator that makes an initialiser known under `name`.

    Raises:
        UserError: another class already has that name.
    """

    def enter(cls: type) -> type:
        taken = _registry.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(f"init={name} is taken by {taken.__module__}.{taken.__qualname__}")
        cls.name = name
        _registry[name] = cls
        return cls

    return enter


def names() -> list[str]:
    """Return the registered names, sorted.

    Examples:
        >>> "pissa" in names()
        True
    """
    _discover()
    return sorted(_registry)


def get(name: str) -> type:
    """Return the class registered under `name`.

    Raises:
        UserError: unknown name; the line holds the near misses.
    """
    _discover()
    if name not in _registry:
        raise UserError(f"init={name} is unknown: {near(name, names())}")
    return _registry[name]


def build(name: str, *, shared: Mapping[str, Any] | None = None, own: Mapping[str, Any] | None = None) -> Any:
    """Build an initialiser from the keys that all methods share and the method's own.

    Args:
        name: registered name.
        shared: rank, alpha, scaling, zeta, zeta_rule, gamma; those the method lacks, and None, are
            dropped, so that a sweep over zeta does not split LoRA.
        own: the method's fields; they win over `shared`. The YAML keys `name` and `lr_prior` are skipped.

    Raises:
        UserError: unknown method, a field that the method lacks, or a value out of bounds.

    Examples:
        >>> build("lora", shared={"rank": 4, "zeta": 16}).eta
        4.0
    """
    cls = get(name)
    known = [field.name for field in fields(cls)]
    given = {key: value for key, value in (own or {}).items() if key not in NOT_FIELDS}
    for key in given:
        if key not in known:
            listed = ", ".join(known) or "none"
            hint = near(key, known) if known else ""
            hint = f"; {hint}" if hint.startswith("did") else ""
            raise UserError(f"init={name} has no field {key!r} (its fields: {listed}){hint}")
    common = {key: value for key, value in (shared or {}).items() if key in known and value is not None}
    return cls(**(common | given))


def consumed(initializer: Any) -> dict[str, Any]:
    """Return what a run consumes of its initialiser: name, version, resolved fields, eta.

    Fields without a value, and those the instance declares `idle` (a width that the plain pattern
    ignores), are left out: two instances with equal results are equal here.

    Examples:
        >>> consumed(build("svft", own={"pattern": "plain", "width": 3}))
        {'name': 'svft', 'version': 1, 'pattern': 'plain', 'eta': 1.0}
    """
    idle = getattr(initializer, "idle", frozenset())
    values = {field.name: getattr(initializer, field.name) for field in fields(initializer)}
    kept = {key: value for key, value in values.items() if value is not None and key not in idle}
    eta = {"eta": initializer.eta} if hasattr(initializer, "eta") else {}
    return {"name": initializer.name, "version": initializer.version, **kept, **eta}


def positive(field: str, value: Any) -> None:
    """Raise UserError unless `value` is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise UserError(f"{field}={value}: a finite number above 0 is needed")


def one_of(field: str, value: Any, options: tuple[str, ...]) -> None:
    """Raise UserError, with the near misses, unless `value` is one of `options`."""
    if value not in options:
        raise UserError(f"{field}={value} is unknown: {near(value, options)}")


def _discover() -> None:
    package = importlib.import_module("lorax.initializers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"lorax.initializers.{module.name}")
