"""The tensors of an adapter in PEFT's format, by what they are: factors of a layer, or a parameter of the model."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lorax.errors import UserError

TENSORS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<layer>.+)\.(?P<part>lora_[ABE]|lora_magnitude_vector)(?:\.weight)?$")
_OTHER = {
    "lora_embedding_": "adapts an embedding, which is no linear layer",
    "token_adapter.": "trains single rows of an embedding",
    "lora_B.bias": "is a bias inside the adapter",
}


@dataclass
class PeftTensors:
    """What the file holds."""

    factors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """{layer: {"lora_A": (r, n), "lora_B": (m, r), of AdaLoRA also "lora_E": (r, 1), of DoRA
    "lora_magnitude_vector": (m,)}}"""
    whole: dict[str, Tensor] = field(default_factory=dict)
    """{name of a parameter of the model: its value}: modules saved whole, biases."""


def read_tensors(path: Path) -> PeftTensors:
    """Read a folder's tensors; a pickled file is read as data, without running what may be in it.

    Raises:
        UserError: no file, one that cannot be read, or tensors that are no LoRA of linear layers.
    """
    found = PeftTensors()
    for key, value in _read(path).items():
        name = key.removeprefix(_PREFIX)
        if not isinstance(value, Tensor) or name == key:
            raise UserError(f"{path}: {_short(key)} is no tensor of an adapter in PEFT's format")
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {_short(key)} holds NaN or Inf: the run diverged, or the file is damaged")
        for part, why in _OTHER.items():
            if part in name:
                raise UserError(f"{path}: {_short(name)} {why}")
        match = _FACTOR.match(name)
        if match is None:
            found.whole[name.replace(".base_layer.", ".")] = value
            continue
        if match["part"] == "lora_magnitude_vector":
            if value.ndim != 1:
                raise UserError(f"{path}: {_short(name)} has shape {tuple(value.shape)}, where a vector is needed")
        elif value.ndim != 2 or 0 in value.shape[:1] * (match["part"] == "lora_B"):
            raise UserError(f"{path}: {_short(name)} has shape {tuple(value.shape)}, where a matrix is needed")
        found.factors.setdefault(match["layer"], {})[match["part"]] = value
    if not found.factors:
        raise UserError(f"{path}: holds no factors of an adapted layer (lora_A, lora_B)")
    return found


def _read(path: Path) -> dict[str, Any]:
    file = path / TENSORS
    try:
        if file.is_file():
            with safe_open(file, framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        if (path / PICKLED).is_file():
            file = path / PICKLED
            data = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
                raise UserError(f"{file}: holds no mapping from names to tensors")
            return data
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{file}: a pickle that is more than tensors, which is not run; save it as safetensors"
        ) from None
    except Exception as error:  # safetensors and torch have errors of their own, of several kinds
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())[:150]})") from None
    shards = sorted(child.name for child in path.glob("adapter_model*")) if path.is_dir() else []
    more = f"; there are {', '.join(shards[:2])}, pieces of one: save it whole" if shards else ""
    raise UserError(f"{path}: lacks {TENSORS}{more}")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"...{text[-77:]}"
