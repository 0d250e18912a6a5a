"""What a mixture is made of and how its coefficients are searched: the words of the command line. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lorax.errors import UserError, near
from lorax.mix.search import Method

CHOICES = {
    "compose": ("sum", "singular_values", "factors"),
    "per": ("all", "layer"),
    "split": ("train", "heldout"),
    "fitness": ("score", "loss"),
}
BOUNDS: dict[str, tuple[float, float]] = {
    "items": (1, 10**5), "population": (3, 4096), "elite": (0.0, 1.0), "generations": (1, 10_000),
    "smoothing": (0.0, 0.99), "std": (1e-6, 1e3), "floor": (0.0, 1e3), "low": (-1e3, 1e3), "high": (-1e3, 1e3),
    "l1": (0.0, 1e3), "lanes": (1, 4096),
}  # fmt: skip
SHARED = {
    "task", "model", "seed", "data_seed", "dtype", "device", "evaluate", "base", "track", "name", "results_dir",
    "label", "tag", "save", "train.eval_batch_size",
}  # fmt: skip
"""Keys of a run that a mixture has too."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A search for a mixture, as `mix.<field>=<value>` sets it."""

    compose: str | None = None
    """sum: the experts' changes of a weight, times their coefficients | singular_values: SVF's z, the sum of
    coefficients times z as the paper of Transformer-squared writes it | factors: LoraHub's, (sum a_k B_k)(sum a_k A_k),
    cross terms included. null: singular_values where all experts hold such vectors, else sum."""
    per: str = "all"
    """all: one coefficient for each expert | layer: one for each expert at each layer."""
    normalise: bool | None = None
    """Divide coefficients by their sum; null: only under singular_values, where it makes sum and z the same."""
    split: str = "train"
    """Where the few items come from: train | heldout. Never from what is scored."""
    items: int = 32
    """How many, drawn by the seed."""
    fitness: str = "score"
    """score: that of the task, the loss deciding between equal ones | loss."""
    population: int = 32
    elite: float = 0.2
    generations: int = 50
    smoothing: float = 0.0
    std: float = 0.5
    floor: float = 0.02
    low: float = 0.0
    high: float = 1.0
    l1: float = 0.0
    """Weight of the mean |coefficient| that is taken off the fitness (LoraHub: 0.05, bounds -1.5 and 1.5)."""
    lanes: int | None = None
    """At most this many candidates on the base at once; null: a whole generation, or as many as fit into memory."""

    def __post_init__(self) -> None:
        """Check names, types and bounds."""
        for item in fields(self):
            key, value = item.name, getattr(self, item.name)
            if value is None and item.default is None:
                continue
            if key in CHOICES and value not in CHOICES[key]:
                raise UserError(f"mix.{key}={value}: {near(value, CHOICES[key])}")
            if key == "normalise" and not isinstance(value, bool):
                raise UserError(f"mix.{key}={value}: must be true or false")
            if key in BOUNDS:
                _check_number(key, value, whole=not isinstance(item.default, float))
        if self.low >= self.high:
            raise UserError(f"mix.low={self.low:g}: must be below mix.high={self.high:g}")

    def method(self, seed: int) -> Method:
        """Return the search's own settings."""
        names = {item.name for item in fields(Method)} - {"seed"}
        return Method(**{name: getattr(self, name) for name in names}, seed=seed)

    def consumed(self) -> dict[str, Any]:
        """Return the fields that decide the result: all but the number of lanes."""
        return {key: value for key, value in asdict(self).items() if key != "lanes"}


def parse(words: Sequence[str]) -> tuple[list[Path], Settings, list[str]]:
    """Return the adapters' folders, the settings and the words that describe the run: task, model, seed, ...

    Raises:
        UserError: an unknown key, one that a mixture does not read, no adapter, or one that is named twice.
    """
    folders: list[Path] = []
    given: dict[str, Any] = {}
    rest: list[str] = []
    own = [item.name for item in fields(Settings)]
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or Path(word).is_dir():
            if word.startswith("-"):
                raise UserError(f"{word}: no such option; python -m lorax.mix --help")
            folders.append(Path(word).expanduser())
        elif key.startswith("mix."):
            name = key.removeprefix("mix.")
            if name not in own:
                raise UserError(f"{key}: no such key; {near(name, own)}")
            given[name] = _value(word, text)
        elif key.lstrip("+").split(".")[0] in ("task", "model") or key in SHARED:
            rest.append(word)
        else:
            shared = [*SHARED, *(f"mix.{name}" for name in own)]
            raise UserError(f"{key}: a mixture trains nothing and does not read it; {near(key, shared)}")
    settings = Settings(**given)
    if not folders:
        raise UserError("no adapter to mix: python -m lorax.mix <folder> <folder> ... task=<task> model=<model>")
    if twice := [
        path for index, path in enumerate(folders) if path.resolve() in {p.resolve() for p in folders[:index]}
    ]:
        raise UserError(f"{twice[0]}: named twice; each adapter is one expert")
    return folders, settings, rest


def _value(word: str, text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{word}: cannot be read as key=value") from None
    if isinstance(value, str):  # YAML takes 1e-3 for a text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_number(key: str, value: Any, whole: bool) -> None:
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value):
        raise UserError(f"mix.{key}={value}: must be a {'whole ' if whole else ''}number")
    low, high = BOUNDS[key]
    if not low <= value <= high:
        raise UserError(f"mix.{key}={value:g}: must be between {low:g} and {high:g}")
