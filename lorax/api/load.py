"""Put saved adapters on a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorax.errors import UserError
from lorax.initializers.registry import build, names

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.install import Adapters
    from lorax.initializers.base import Initializer


def load(model: nn.Module, path: str | os.PathLike[str], check: str = "error") -> Adapters:
    """Put adapters saved by `adapters.save`, or by PEFT, on a model; no decomposition is repeated.

    Of PEFT's adapters LoRA (rank-stabilised too) and AdaLoRA are read, with biases and modules trained beside them;
    they compute what PEFT's do, and train on as low-rank factors.

    Args:
        model: the base they were trained on, untouched.
        path: the folder: of `adapters.save`, or with PEFT's adapter_config.json.
        check: "error" refuses a base whose adapted weights differ from those at saving; "warn" goes on, for
            the same weights in another dtype. PEFT's format holds nothing to check.

    Raises:
        UserError: no such adapter, another base, or one of PEFT's that is not held exactly.
    """
    from lorax.adapters.load import load as read
    from lorax.adapters.peft.config import is_peft_folder
    from lorax.adapters.peft.load import load as read_peft

    if is_peft_folder(Path(path)):
        return read_peft(model, Path(path))

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

    adapters = read(model, Path(path), check=check, accept=build_method)
    if adapters.layer_adapters() and built:
        adapters.rates, adapters.rule = dict(built[0].rates), built[0].rule()
    return cast("Adapters", adapters)
