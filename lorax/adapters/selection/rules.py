"""What PEFT's users set beside the targets: layers left out, ranks and alphas by layer, modules trained whole.

Names are matched as PEFT 0.21 matches them (`peft.tuners.tuners_utils.check_target_module_exists`,
`peft.utils.other.get_pattern_key`); a value that matches nothing, which PEFT ignores, is refused. Torch-free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from lorax.errors import UserError, near

Method = TypeVar("Method")
EXCLUDED = "named in exclude_modules"
WHOLE = "trained whole (modules_to_save)"
OTHER_BLOCKS = "not in layers_to_transform"
ASKED = (EXCLUDED, WHOLE, OTHER_BLOCKS)
"""Reasons that the user gave."""


@dataclass(frozen=True)
class Rules:
    """The values as given; None, and an empty list or mapping, is no rule."""

    exclude_modules: str | Collection[str] | None = None
    """Layers left out: a list of names or name suffixes, or an expression that matches the whole name."""
    layers_to_transform: int | Collection[int] | None = None
    """Only blocks of these numbers: the first number in a layer's name. A layer named in full is taken all the same."""
    layers_pattern: str | Collection[str] | None = None
    """What stands before that number ("layers", "h"), where a model has several lists of blocks."""
    rank_pattern: Mapping[str, int] | None = None
    """{the end of a name, as an expression: rank}; the first that matches counts."""
    alpha_pattern: Mapping[str, float] | None = None
    """{the end of a name, as an expression: alpha}; the first that matches counts."""
    modules_to_save: Collection[str] | None = None
    """Ends of names of modules that train whole; nothing in them is adapted."""

    def __post_init__(self) -> None:
        """Check the values, and take one for a list of one."""
        for key, value in {item.name: getattr(self, item.name) for item in fields(self)}.items():
            object.__setattr__(self, key, _checked(key, value))
        if self.layers_pattern and self.indices is None:
            raise UserError(f"layers_pattern={self.layers_pattern}: needs layers_to_transform, the numbers")

    @property
    def indices(self) -> list[int] | None:
        """The numbers of the blocks that are adapted; None: all."""
        return list(self.layers_to_transform) if isinstance(self.layers_to_transform, (list, tuple)) else None

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return any(getattr(self, item.name) is not None for item in fields(self))

    def given(self) -> dict[str, Any]:
        """Return the rules that are set, as plain data; a mapping in its order, since the first match counts."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in values.items():
            if isinstance(value, Mapping):
                values[name] = [f"{key}:{int(n) if n == int(n) else float(n)}" for key, n in value.items()]
        return {key: value for key, value in values.items() if value is not None}

    def left_out(self, names: Iterable[str], targets: object) -> dict[str, str]:
        """Return {name: reason} of the layers that the targets cover and the rules leave out.

        Args:
            names: of the layers that the targets cover.
            targets: as asked for.

        Raises:
            UserError: a rule that leaves out, or keeps, nothing.
        """
        names = list(names)
        reasons: dict[str, str] = {}
        for name in names:
            if self._excluded(name):
                reasons[name] = EXCLUDED
            elif self._in_saved(name):
                reasons[name] = WHOLE
        wanted = self.indices
        if wanted is None:
            return reasons
        if isinstance(targets, str) and targets != "all-linear":
            raise UserError(f"layers_to_transform={wanted}: takes a list of targets; an expression can hold numbers")
        whole = set() if isinstance(targets, str) else set(targets) if isinstance(targets, Collection) else set()
        found = {name: self._index(name) for name in names if name not in reasons and name not in whole}
        there = sorted({index for index in found.values() if index is not None})
        self._check_containers(names)
        for index in wanted:
            if index not in there:
                span = f"blocks {there[0]} to {there[-1]}" if there else "blocks without a number"
                raise UserError(f"layers_to_transform={index}: the targets lie in {span}")
        return reasons | {name: OTHER_BLOCKS for name, i in found.items() if i not in set(wanted)}

    def check_excluded(self, names: Collection[str], linear: Collection[str]) -> None:
        """Refuse an exclude_modules that names no layer.

        Args:
            names: of all modules.
            linear: of those that are linear layers.

        Raises:
            UserError: it matches no module, or only modules around layers, which stay.
        """
        given = self.exclude_modules
        for one in [given] if isinstance(given, str) else given or []:
            test = Rules(exclude_modules=one if isinstance(given, str) else [one])
            matching = [name for name in names if name and test._excluded(name)]
            if not matching:
                ends = [name for name in names if name] if "." in one else sorted({n.rpartition(".")[2] for n in names})
                how = "; an expression is matched with the whole name" if isinstance(given, str) else ""
                raise UserError(f"exclude_modules={one!r} matches no module; {near(one, ends)}{how}")
            inside = sorted({n.rpartition(".")[2] for n in linear if any(n.startswith(f"{m}.") for m in matching)})
            if inside and not set(matching) & set(linear):
                raise UserError(
                    f"exclude_modules={one!r} names no layer but a module around some, which PEFT's rule keeps; "
                    f"name the layers: {', '.join(inside[:6])}"
                )

    def check_patterns(self, chosen: Collection[str]) -> None:
        """Refuse patterns that match none of the adapted layers.

        Raises:
            UserError: names the pattern and what is near.
        """
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, key) or ():
                if not any(_ends_in(pattern, name) for name in chosen):
                    ends = chosen if "." in pattern else sorted({name.rpartition(".")[2] for name in chosen})
                    raise UserError(f"{key}: {pattern!r} matches no adapted layer; {near(pattern, ends)}")

    def rank(self, name: str, default: int) -> int:
        """Return a layer's rank."""
        return _first(self.rank_pattern, name, default)

    def alpha(self, name: str, default: float) -> float:
        """Return a layer's alpha."""
        return float(_first(self.alpha_pattern, name, default))

    def keeps(self, name: str, targets: Collection[str]) -> bool:
        """Return whether the rules keep a layer that targets name: not excluded, and in a block that is wanted."""
        if self._excluded(name) or self._in_saved(name):
            return False
        named_in_full = not isinstance(targets, str) and name in targets
        return self.indices is None or named_in_full or self._index(name) in self.indices

    def at(self, name: str, method: Method) -> Method:
        """Return the method with a layer's own rank and alpha; a method without them is returned as it is.

        As in PEFT the alpha of a layer that no alpha_pattern matches is the run's, whatever its rank.

        Raises:
            UserError: a rank or alpha that the method does not take.
        """
        if not self.rank_pattern and not self.alpha_pattern:
            return method
        has = {item.name for item in fields(method)}  # type: ignore[arg-type]  # an initialiser is a dataclass
        own = {
            "rank": _first(self.rank_pattern, name, None) if "rank" in has else None,
            "alpha": _first(self.alpha_pattern, name, None) if "alpha" in has else None,
        }
        changed = {key: value for key, value in own.items() if value is not None and value != getattr(method, key)}
        return replace(method, **changed) if changed else method  # type: ignore[type-var]

    def check_method(self, method: Any) -> None:
        """Refuse ranks by layer for a method that changes ranks itself.

        Raises:
            UserError: names the method.
        """
        if self.rank_pattern and method.sets_ranks and "rank" in {item.name for item in fields(method)}:
            raise UserError(f"rank_pattern: init={method.name} sets its layers' ranks itself")

    def saved_whole(self, names: Iterable[str]) -> list[str]:
        """Return the modules that modules_to_save names: PEFT compares the ends of names, dots or not.

        Args:
            names: of all modules that hold parameters.

        Raises:
            UserError: an end that matches none.
        """
        names = [name for name in names if name]
        for one in self.modules_to_save or ():
            if not any(name.endswith(one) for name in names):
                ends = names if "." in one else sorted({name.rpartition(".")[2] for name in names})
                raise UserError(f"modules_to_save={one!r} matches no module with weights; {near(one, ends)}")
        return [name for name in names if name.endswith(tuple(self.modules_to_save or ("\0",)))]

    def _excluded(self, name: str) -> bool:
        if not self.exclude_modules:
            return False
        if isinstance(self.exclude_modules, str):
            return re.fullmatch(self.exclude_modules, name) is not None
        return name in self.exclude_modules or name.endswith(tuple(f".{one}" for one in self.exclude_modules))

    def _in_saved(self, name: str) -> bool:
        return any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in self.modules_to_save or ())

    def _index(self, name: str) -> int | None:
        """Return the number of a layer's block: the first in its name."""
        patterns = [rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\." for one in self.layers_pattern or ()]
        for pattern in patterns or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            if (match := re.match(pattern, name)) is not None:
                return int(match["idx"])
        return None

    def _check_containers(self, names: Collection[str]) -> None:
        for one in self.layers_pattern or ():
            if not any(re.match(rf"(?:^|.*?\.){one}\.\d+\.", name) for name in names):
                lists = sorted({match[1] for name in names if (match := re.match(r"(?:.*?\.)?([^.]+)\.\d+\.", name))})
                raise UserError(f"layers_pattern={one!r} stands before no number in the targets; {near(one, lists)}")


def _ends_in(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _first(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    return next((value for pattern, value in (patterns or {}).items() if _ends_in(pattern, name)), default)


def _checked(key: str, value: Any) -> Any:
    """Return a value in one form, or raise where it is of another kind or no expression."""
    if value is None or (not isinstance(value, (int, float)) and not value):
        return None
    if key.endswith("_pattern") and key != "layers_pattern":
        return _mapping(key, value)
    if key == "layers_to_transform":
        numbers = [value] if not isinstance(value, Collection) or isinstance(value, str) else list(value)
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in numbers):
            raise UserError(f"{key}={value!r}: whole numbers of at least 0 are needed")
        return sorted(set(numbers))
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Collection) else [value]
    if any(not isinstance(one, str) or not one for one in texts):
        raise UserError(f"{key}={value!r}: a list of names is needed")
    for one in texts:
        _compiled(key, one)
    if key == "exclude_modules" and isinstance(value, str):
        return value
    return texts if key == "layers_pattern" else sorted(set(texts))


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{key}={value!r}: a mapping from layer names to numbers is needed, such as {{q_proj: 4}}")
    for pattern, number in value.items():
        _compiled(key, str(pattern))
        whole = key == "rank_pattern"
        fits = isinstance(number, int) if whole else isinstance(number, int | float) and math.isfinite(number)
        if isinstance(number, bool) or not fits or number <= 0:
            kind = "a whole number of at least 1" if whole else "a finite number above 0"
            raise UserError(f"{key}: {pattern}={number!r}: {kind} is needed")
    return {str(pattern): number for pattern, number in value.items()}


def _compiled(key: str, text: Any) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise UserError(f"{key}: {text!r} is not a regular expression: {error}") from None


NO_RULES = Rules()
