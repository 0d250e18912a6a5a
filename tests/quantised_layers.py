"""Layers with quantised weights: torchao's and bitsandbytes' own, and stand-ins with their layout that need neither.

`make test-quantised` installs both packages into a folder and runs the tests marked `quantised`, which use them.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class TorchAOBaseTensor(torch.Tensor):
    """Stand-in of torchao's class: int8 values and a scale a row, no memory of its own, few operations."""

    @staticmethod
    def __new__(cls, qdata, scale):
        return torch.Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=scale.dtype, device=qdata.device)

    def __init__(self, qdata, scale):
        self.qdata, self.scale = qdata, scale

    def __tensor_flatten__(self):
        return ["qdata", "scale"], None

    def dequantize(self):
        return self.qdata.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = (*args, None)[:3]
            y = (x @ weight.qdata.mT.to(x.dtype)) * weight.scale.to(x.dtype).flatten()
            return y if bias is None else y + bias
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].qdata, args[0].scale)
        raise NotImplementedError(f"{func} on a quantised weight")


TorchAOBaseTensor.__module__ = "torchao.stand_in"


class Linear4bit(nn.Linear):
    """Stand-in with the layout of bitsandbytes' Linear4bit: a flat packed weight, what unpacks it beside it.

    In evaluation mode it is repacked, for good.
    """

    quant_state = None

    def forward(self, x):
        if not self.training:
            self.weight.data = self.weight.data.flip(0)
        return F.linear(x, self.dequantised(self.weight).to(x.dtype), self.bias)

    def dequantised(self, weight):
        return (weight.view(self.out_features, self.in_features).float() - 8) / 8 * self.scale


def _int8(layer):
    scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    qdata = (layer.weight.detach() / scale).round().to(torch.int8)
    layer.weight = nn.Parameter(TorchAOBaseTensor(qdata, scale), requires_grad=False)
    return layer


def _packed(layer):
    packed = Linear4bit(layer.in_features, layer.out_features, bias=layer.bias is not None)
    packed.bias = layer.bias
    packed.scale = layer.weight.detach().abs().amax(1, keepdim=True)
    packed.weight = nn.Parameter(
        (layer.weight.detach() / packed.scale * 7 + 8).round().to(torch.uint8).view(-1, 1), requires_grad=False
    )
    return packed


def _torchao(layer, config):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    if config == "int8":
        quantize_(layer, Int8WeightOnlyConfig())
    else:
        from torchao.quantization import NF4Tensor

        block = 64 if layer.weight.numel() % 64 == 0 else 1
        blocks = layer.weight.numel() // block
        weight = NF4Tensor.from_tensor(layer.weight.detach(), block, blocks)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _bnb(layer, bits):
    import bitsandbytes as bnb

    n, m, bias = layer.in_features, layer.out_features, layer.bias is not None
    if bits == 4:
        made = bnb.nn.Linear4bit(n, m, bias, compute_dtype=torch.float32, quant_type="nf4")
    else:
        made = bnb.nn.Linear8bitLt(n, m, bias, has_fp16_weights=False)
    made.load_state_dict(layer.state_dict())
    return made.to("cpu")


FORMS = {
    "stand_in_int8": _int8,
    "stand_in_4bit": _packed,
    "torchao_int8": lambda layer: _torchao(layer, "int8"),
    "torchao_nf4": lambda layer: _torchao(layer, "nf4"),
    "bnb_4bit": lambda layer: _bnb(layer, 4),
    "bnb_8bit": lambda layer: _bnb(layer, 8),
}


def forms(slow=()):
    """Return the forms as parameters; those that need a package are marked, and so are the slow ones."""
    marks = {True: pytest.mark.quantised, False: ()}
    return [
        pytest.param(name, marks=pytest.mark.slow if name in slow else marks[not name.startswith("stand_in")])
        for name in FORMS
    ]


def quantised(model, form):
    """Quantise every linear layer of a model in place."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], FORMS[form](layer))
    return model


@pytest.fixture
def stand_ins(monkeypatch):
    """Make the stand-in with a packed weight known: torchao's is known by its name."""
    from lorax.adapters.linears import quantised_form as forms_of

    form = forms_of.QuantisedForm(
        lambda module: type(module) is Linear4bit,
        lambda weight, module: module.dequantised(weight),
        lambda module: "packed",
        runs_apart=True,
        repacks=lambda module: True,
    )
    monkeypatch.setattr(forms_of, "_FORMS", [form, *forms_of._FORMS])
