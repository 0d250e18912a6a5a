"""Put saved adapters on a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from lorax.errors import UserError
from lorax.initializers.registry import build, names

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.install import Adapters
    from lorax.initializers.base import Initializer
    from lorax.loading.named.collection import NamedAdapters


@overload
def load(model: nn.Module, path: str | os.PathLike[str], check: str = "error", *, name: None = None) -> Adapters: ...


@overload
def load(model: nn.Module, path: str | os.PathLike[str], check: str = "error", *, name: str) -> NamedAdapters: ...


def load(
    model: nn.Module, path: str | os.PathLike[str], check: str = "error", *, name: str | None = None
) -> Adapters | NamedAdapters:
    """Put adapters saved by `adapters.save`, or by PEFT, on a model; no decomposition is repeated.

    Of PEFT's adapters LoRA (rank-stabilised too), DoRA and AdaLoRA are read, with biases and modules trained beside
    them; they compute what PEFT's do, and train on. Only under dropout DoRA trains on otherwise: PEFT drops out the
    input of W0's part too, here that of the low-rank path alone.

    Args:
        model: the base they were trained on, untouched.
        path: the folder: of `adapters.save`, or with PEFT's adapter_config.json.
        check: "error" refuses a base whose adapted weights differ from those at saving; "warn" goes on, for
            the same weights in another dtype. PEFT's format holds nothing to check.
        name: load it beside others that were loaded with a name. `adapters.use(name)` switches,
            `adapters.use(rows=[name, other, None])` gives each row of a batch its own; no weight is written.

    Returns:
        The adapters' handle; with a name all named adapters of the model, of which the new one is in use.

    Raises:
        UserError: no such adapter, another base, or one of PEFT's that is not held exactly.
    """
    from lorax.adapters.load import load as read
    from lorax.loading.named.load import load as read_beside
    from lorax.loading.peft.config import is_peft_folder
    from lorax.loading.peft.load import load as read_peft

    built: list[Initializer] = []

    def build_method(info: dict[str, Any]) -> None:
        saved, known = info.get("init"), names()  # another package's method may be missing here
        if not isinstance(saved, dict) or saved.get("name") not in known:
            return
        fields = {key: value for key, value in saved.items() if key not in ("name", "version", "eta")}
        try:
            built.append(build(saved["name"], own=fields))
        except (UserError, TypeError) as error:
            raise UserError(f"{path}: init={saved['name']} of the saved adapter cannot be built: {error}") from None

    if name is not None:
        beside = read_beside(model, name, Path(path), check, build_method)
        _as_trained(beside[name], built)
        return beside
    adapters = (
        read_peft(model, Path(path)) if is_peft_folder(Path(path)) else read(model, Path(path), check, build_method)
    )
    if adapters.layer_adapters():
        _as_trained(adapters, built)
    return cast("Adapters", adapters)


def _as_trained(adapters: Adapters, built: list[Initializer]) -> None:
    """Give a handle its method's rates and rule."""
    if built:
        adapters.rates, adapters.rule = dict(built[0].rates), built[0].rule()
