"""The forms of torchao and bitsandbytes. Neither package is imported: their classes are known by name."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.linears.quantised_form import QuantisedForm, named, register_form


def _plain_call(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _torchao(module: nn.Module) -> bool:
    weight: Any = module._parameters["weight"]
    readable = named(type(weight), "torchao", "NF4Tensor") or (
        named(type(weight), "torchao", "TorchAOBaseTensor") and hasattr(weight, "dequantize")
    )
    return _plain_call(module) and readable and weight.ndim == 2


def _from_torchao(weight: Any, module: nn.Module) -> Tensor:
    if named(type(weight), "torchao", "NF4Tensor"):
        return weight.get_original_weight()
    return weight.dequantize()


def _torchao_refusal(module: nn.Module) -> str | None:
    weight: Any = module._parameters["weight"]
    kept = [getattr(weight, name, None) for name in ("act_quant_kwargs", "activation_quantization", "act_pre_scale")]
    if any(one is not None for one in kept):
        return (
            f"{type(module).__name__} is quantised (torchao {type(weight).__name__}) together with its inputs, "
            "which have no gradient then; quantise the weights alone (Int8WeightOnlyConfig)"
        )
    return None


def _bnb(module: nn.Module) -> bool:
    return named(type(module), "bitsandbytes", "Linear4bit", "Linear8bitLt")


def _four_bit(module: nn.Module) -> bool:
    return named(type(module), "bitsandbytes", "Linear4bit")


def _state_of(weight: Any, module: nn.Module) -> Any:
    state = getattr(weight, "quant_state", None)
    return getattr(module, "quant_state", None) if state is None else state


def _from_bnb(weight: Any, module: nn.Module) -> Tensor:
    if not _four_bit(module):
        state: Any = module.state
        scales = weight.SCB if getattr(weight, "SCB", None) is not None else state.SCB
        return weight.data.to(torch.float32) * (scales.to(torch.float32)[:, None] / 127)
    import bitsandbytes.functional as functional

    data, state = weight.data, _state_of(weight, module)
    if getattr(state, "packing_format_for_cpu", False):
        data, state = _unpacked(data, state, functional)
    return functional.dequantize_4bit(data, state)


def _unpacked(data: Tensor, state: Any, functional: Any) -> tuple[Tensor, Any]:
    """Return the weight and the state of a layer that was run in evaluation mode before the adapters came.

    Some CPUs have their 4-bit weights repacked then, and the scales rounded to bf16. bitsandbytes' way back changes the
    state that the layer computes with, and restores the scales of a doubly quantised weight alone.
    """
    scales, state = state.absmax, copy.copy(state)
    state.original_nested = False
    data, state = functional._convert_weight_packed_for_cpu_inverse(data, state)
    state.absmax = scales.mT.reshape(-1).to(torch.float32)
    return data, state


def _bnb_label(module: nn.Module) -> str:
    if not _four_bit(module):
        return "bitsandbytes int8"
    return f"bitsandbytes {getattr(module._parameters['weight'], 'quant_type', '4-bit')}"


def _bnb_refusal(module: nn.Module) -> str | None:
    weight: Any = module._parameters["weight"]
    if _four_bit(module):
        ready = _state_of(weight, module) is not None
    else:
        state: Any = module.state
        if state.has_fp16_weights:
            return "Linear8bitLt holds float16 weights (has_fp16_weights=True); load the model with load_in_8bit"
        ready = getattr(weight, "SCB", None) is not None or state.SCB is not None
    if not ready:
        return f"{type(module).__name__} (bitsandbytes) is not quantised yet; move the model to its device first"
    return None


register_form(
    QuantisedForm(
        _torchao,
        _from_torchao,
        lambda module: f"torchao {type(module._parameters['weight']).__name__}",
        _torchao_refusal,
        runs_apart=True,
    )
)
register_form(
    QuantisedForm(
        _bnb,
        _from_bnb,
        _bnb_label,
        _bnb_refusal,
        runs_apart=True,
        repacks=_four_bit,
    )
)
