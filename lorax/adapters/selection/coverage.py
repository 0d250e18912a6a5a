"""Coverage: which share of a model's weights is adapted, and what is left out for what reason."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lorax.adapters.kinds import is_linear, shape_of
from lorax.adapters.selection.rules import ASKED
from lorax.architecture.heads import HEAD
from lorax.architecture.towers import OUTSIDE, outside_the_language_model

EMBEDDING = "embedding"
UNNAMED = "not among the targets"
EXPERTS = "experts held as one 3-D parameter"
BARE = "a bare parameter, no layer"
NOT_LINEAR = "no linear layer"
_EXPECTED = (EMBEDDING, HEAD, UNNAMED, *ASKED)
"""Reasons that surprise nobody."""
_SMALL = (BARE, NOT_LINEAR)
"""Beginnings of reasons that are worth a word only where much is left out."""
_MUCH = 0.05
_LONG = 200
"""Letters of a warning that go to names and reasons."""


@dataclass(frozen=True)
class Coverage:
    """What adapters stand on. Weights are the numbers of all parameters with two dims or more, tied ones once."""

    layers: int
    """How many layers (or modules) are adapted."""
    adapted: int
    """Weights in them."""
    total: int
    """Weights of the model."""
    trained_whole: dict[str, int] = field(default_factory=dict)
    """{module trained whole beside the adapters: its parameters, biases too}."""
    left_out: dict[str, str] = field(default_factory=dict)
    """{module, or bare parameter, that is not adapted: reason}."""
    sizes: dict[str, int] = field(default_factory=dict)
    """{the same: its weights}; 0 where they are counted at another place (tied)."""

    @property
    def share(self) -> float:
        """Adapted weights over all weights."""
        return self.adapted / self.total if self.total else 0.0

    @property
    def embeddings(self) -> float:
        """Share of the embedding tables in all weights."""
        return self.share_of(EMBEDDING)

    def share_of(self, reason: str) -> float:
        """Return the share of all weights that is left out for a reason."""
        size = sum(self.sizes.get(name, 0) for name, why in self.left_out.items() if why == reason)
        return size / self.total if self.total else 0.0

    def reasons(self) -> dict[str, list[str]]:
        """Return {reason: names left out for it}, the largest share first."""
        found: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            found.setdefault(why, []).append(name)
        return dict(sorted(found.items(), key=lambda item: -self.share_of(item[0])))

    def surprises(self) -> str | None:
        """Return one line about what is left out for a reason that a user would not expect, or None."""
        surprising = {
            why: names
            for why, names in self.reasons().items()
            if why not in _EXPECTED and (self.share_of(why) > _MUCH or not why.startswith(_SMALL))
        }
        if not surprising:
            return None
        ordered = sorted(surprising.items(), key=lambda item: item[0].startswith(_SMALL))
        words = [self._word(why, names, shown=1) for why, names in ordered]
        said = [word for cut, word in enumerate(words[:2]) if len("; ".join(words[: cut + 1])) <= _LONG or not cut]
        more = f"; more for {len(words) - len(said)} other cause(s)" if len(words) > len(said) else ""
        return f"left out {'; '.join(said)}{more}; {self._head()}"

    def to_dict(self) -> dict[str, Any]:
        """Return what a record keeps: numbers, and for each reason how many names and which share."""
        reasons = {why: {"names": len(names), "share": self.share_of(why)} for why, names in self.reasons().items()}
        return {"layers": self.layers, "share": self.share, "left_out": reasons}

    def _head(self) -> str:
        layers = f"{self.layers} layer{'s' if self.layers != 1 else ''}"
        return f"{layers}, {_percent(self.share)} of the weights are adapted"

    def _word(self, why: str, names: list[str], shown: int = 2) -> str:
        return f"{abbreviated(names, shown)} [{_percent(self.share_of(why))}]: {why}"

    def __str__(self) -> str:
        """Return a line on what is adapted and one for each reason."""
        lines = [f"{self._head()} ({self.adapted:,} of {self.total:,}, embeddings {_percent(self.embeddings)})"]
        if self.trained_whole:
            count = sum(self.trained_whole.values())
            lines.append(f"trained whole: {abbreviated(self.trained_whole)}, {count:,} numbers")
        lines += [f"left out {self._word(why, names)}" for why, names in self.reasons().items()]
        return "\n".join(lines)


def coverage_of(
    model: nn.Module,
    chosen: Collection[str],
    left_out: Mapping[str, str],
    whole: Collection[str] = (),
    targets: str | Sequence[str] = "all-linear",
) -> Coverage:
    """Return what is adapted when `chosen` are.

    Args:
        model: with nothing installed yet.
        chosen: names of adapted modules, or of bare parameters that are adapted, or of experts in one.
        left_out: {name: reason} where the reason is known; others get theirs from what they are.
        whole: names of modules that train whole.
        targets: as asked for; where they are named, whatever they do not name is left out for that reason.
    """
    modules = dict(model.named_modules())
    outside = outside_the_language_model(modules) if targets == "all-linear" else set()
    places = [part for place in _weights(modules) for part in _by_expert(place, chosen, left_out)]
    places.sort(key=lambda place: _top(place[0], chosen) is None)  # an adapted one counts
    sizes: dict[str, int] = {}
    reasons: dict[str, str] = {}
    adapted, seen = 0, set()
    for name, owner, key, size in places:
        counted = 0 if key in seen else size
        seen.add(key)
        if _top(name, chosen) is not None:
            adapted += counted
        elif _top(name, whole) is not None:
            continue
        else:
            place = _top(name, left_out) or name
            sizes[place] = sizes.get(place, 0) + counted
            other = _reason(name, owner) if targets == "all-linear" else UNNAMED
            known = left_out.get(place) or (OUTSIDE if _top(name, outside) is not None else None)
            reasons[place] = known or (EMBEDDING if isinstance(owner, nn.Embedding) else other)
    numbers = {name: sum(p.numel() for p in modules[name].parameters()) for name in whole}
    distinct = {key: size for _, _, key, size in places}
    return Coverage(len(chosen), adapted, sum(distinct.values()), numbers, reasons, sizes)


def abbreviated(names: Collection[str], shown: int = 2) -> str:
    """Return names for a message: numbers between dots become a star, and what repeats is counted.

    Examples:
        >>> abbreviated(["layers.0.gate", "layers.1.gate", "head"])
        'layers.*.gate (2), head'
    """
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    words = [f"{pattern} ({count})" if count > 1 else pattern for pattern, count in counts.items()]
    return ", ".join(words[:shown]) + (f" and {len(words) - shown} more" if len(words) > shown else "")


Place = tuple[str, nn.Module, Hashable, int]
"""Name, owning module, identity and size of a weight."""


def _by_expert(place: Place, chosen: Collection[str], left_out: Collection[str]) -> list[Place]:
    """Return a stack of experts' weights expert by expert, where some of them are named."""
    name, owner, key, size = place
    stack = owner._parameters.get(name.rpartition(".")[2], owner._parameters.get("weight"))
    if stack is None or stack.ndim != 3:
        return [place]
    for parameter in (name, f"{name}.weight"):  # one that is called weight goes by its module's name here
        experts = [f"{parameter}.{e}" for e in range(len(stack))]
        if any(expert in chosen or expert in left_out for expert in experts):
            return [(expert, owner, (key, expert), size // len(stack)) for expert in experts]
    return [place]


def _weights(modules: Mapping[str, nn.Module]) -> list[Place]:
    """Return every weight: a module's own, or a bare parameter."""
    places: list[Place] = []
    for name, module in modules.items():
        if is_linear(module) and (weight := module._parameters.get("weight")) is not None:
            places.append((name, module, id(weight), math.prod(shape_of(module))))
            continue
        n, m = (getattr(module, key, None) for key in ("in_features", "out_features"))
        if module._buffers and isinstance(n, int) and isinstance(m, int) and not _matrices(module):
            places.append((name, module, id(module), m * n))  # quantised, in buffers
        for key, parameter in _matrices(module):
            place = f"{name}.{key}".removeprefix(".") if key != "weight" else name
            places.append((place, module, id(parameter), parameter.numel()))
    return places


def _matrices(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(key, p) for key, p in module._parameters.items() if p is not None and p.ndim >= 2]


def _top(name: str, tops: Collection[str]) -> str | None:
    """Return which of `tops` a name is, or lies in (an adapted block, a bare parameter of an adapted module)."""
    cuts = [cut for cut, letter in enumerate(name) if letter == "."]
    return next((part for part in (name, *(name[:cut] for cut in reversed(cuts))) if part in tops), None)


def _reason(name: str, owner: nn.Module) -> str:
    kind = type(owner).__name__
    bare = owner._parameters.get(re.sub(r"\.\d+$", "", name).rpartition(".")[2])
    if bare is None and not is_linear(owner) and not isinstance(owner, nn.modules.conv._ConvNd):
        bare = owner._parameters.get("weight")
    if bare is not None and bare.is_floating_point():
        return EXPERTS if "expert" in name and bare.ndim == 3 else f"{BARE} (of {kind})"
    if is_linear(owner):
        return UNNAMED
    if isinstance(owner, nn.modules.conv._ConvNd):
        return f"{NOT_LINEAR} ({kind})"
    return f"quantised, or a layer of an unknown kind ({kind})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"
