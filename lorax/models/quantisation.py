"""Quantised bases: what `model.quantization` names, and how a model gets its quantised weights.

The head stays as it is. int8 and the two of bitsandbytes go through transformers, which quantises layer by layer while
it loads; torchao's nf4 is not known to it, so the model is loaded first and quantised layer by layer afterwards.
"""

from __future__ import annotations

import hashlib
import importlib.util
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError, near

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGES = {"int8": "torchao", "nf4": "torchao", "bnb_4bit": "bitsandbytes", "bnb_8bit": "bitsandbytes"}
"""{what model.quantization may name: the package that does it}."""
_NF4 = (64, 256)
"""Values of a block, and blocks of a scale: an nf4 weight of torchao holds a multiple of both."""


def check_quantization(name: str | None) -> None:
    """Refuse what `model.quantization` cannot be.

    Raises:
        UserError: an unknown name, with near misses.
    """
    if name is not None and name not in PACKAGES:
        raise UserError(f"model.quantization={name}: {near(str(name), PACKAGES)}")


def quantised_digest(digest: str, name: str | None) -> str:
    """Return the digest of a base: that of its files, and how they are quantised where they are."""
    return digest if name is None else hashlib.sha256(f"{digest} {name}".encode()).hexdigest()[:32]


def config_for(name: str | None, dtype: torch.dtype) -> Any:
    """Return what `from_pretrained` takes as `quantization_config`; None where it takes none.

    Raises:
        UserError: the package is not installed.
    """
    if name is None:
        return None
    package = PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"model.quantization={name} needs {package}: pip install 'lorax-bench[quantised]'")
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if name == "bnb_4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return BitsAndBytesConfig(load_in_8bit=True) if name == "bnb_8bit" else None


def quantise_loaded(model: Any, name: str | None) -> None:
    """Finish what transformers leaves: quantise in nf4 every layer but the head, and keep bitsandbytes from repacking.

    A layer stays as it is where its number of values is no multiple of 16384. bitsandbytes would repack 4-bit weights
    at the first evaluation on CPUs that multiply bf16, and round their scales for good: a run's start would depend on
    what was evaluated before it.

    Raises:
        UserError: no layer can be quantised.
    """
    if name == "bnb_4bit":
        for layer in model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
    if name == "nf4":
        _nf4(model)


def _nf4(model: Any) -> None:
    from torch import nn
    from torchao.quantization import NF4Tensor

    head = model.get_output_embeddings()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    done = 0
    for layer in layers:
        if layer.weight.numel() % (_NF4[0] * _NF4[1]) == 0:
            layer.weight = _frozen(NF4Tensor.from_tensor(layer.weight.detach(), *_NF4))
            done += 1
    if not done:
        raise UserError("model.quantization=nf4: no layer holds a multiple of 16384 values; use int8")


def _frozen(weight: Any) -> nn.Parameter:
    from torch import nn

    return nn.Parameter(weight, requires_grad=False)
