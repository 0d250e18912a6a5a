"""Layers that look linear: adapted where they compute x W^T + b, else named with what to do."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers.models.falcon.modeling_falcon import FalconLinear

import lorax
from lorax.adapters.install import find_targets, install
from lorax.adapters.kinds import find_kind, is_linear
from lorax.adapters.linears.unfit import unfit
from lorax.adapters.targets import select
from lorax.errors import UserError


class Spelled(nn.Linear):
    """x W^T + b in other words."""

    def forward(self, x):
        return torch.einsum("...n,mn->...m", x, self.weight) + (0 if self.bias is None else self.bias)


class Scaled(nn.Linear):
    scale = 2.0

    def forward(self, x):
        return super().forward(x) * self.scale


class Noisy(nn.Linear):
    """x W^T + b in eval mode only."""

    def forward(self, x):
        return super().forward(x) + (torch.randn(()) if self.training else 0)


class Counting(nn.Linear):
    """Computes x W^T + b and counts its calls in a buffer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class WithAdapter(nn.Linear):
    """Another library's LoRA, whose B is still zero: it computes x W^T + b today."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lora_A, self.lora_B = nn.Parameter(torch.ones(2, 6)), nn.Parameter(torch.zeros(8, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


class TwoInputs(nn.Linear):
    def forward(self, x, y):
        return super().forward(x + y)


class Linear4bit(nn.Linear):
    """Stands for bitsandbytes': the weight is packed bytes."""

    def __init__(self):
        super().__init__(6, 8)
        self.weight = nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return x


Linear4bit.__module__ = "bitsandbytes.nn.modules"


class QuantLinear(nn.Module):
    """Stands for GPTQ's and AWQ's: no nn.Linear, no weight."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 6, 8
        self.register_buffer("qweight", torch.zeros(1, 8, dtype=torch.int32))


def lazy():
    return nn.LazyLinear(8)


def dynamic():
    from torch.ao.nn.quantized import dynamic as quantised

    return quantised.Linear(6, 8)


def int8():
    layer = nn.Linear(6, 8)
    layer.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.int8), requires_grad=False)
    return layer


def float8():
    layer = nn.Linear(6, 8)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def old_weight_norm():
    layer = nn.Linear(6, 8)
    nn.utils.weight_norm(layer)
    return layer


def pruned():
    layer = nn.Linear(6, 8)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def bias_parametrised():
    layer = nn.Linear(6, 8)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


ADAPTED = {
    "falcon": lambda: FalconLinear(6, 8),
    "falcon without bias": lambda: FalconLinear(6, 8, bias=False),
    "MultiheadAttention's": lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(6, 8),
    "spelled": lambda: Spelled(6, 8),
    "counting": lambda: Counting(6, 8),
}
LEFT_OUT = {
    "scaled": (lambda: Scaled(6, 8), "Scaled has a forward of its own that is not x W.T . b"),
    "noisy": (lambda: Noisy(6, 8), "Noisy has a forward of its own"),
    "two inputs": (lambda: TwoInputs(6, 8), "TwoInputs has a forward of its own"),
    "another adapter": (lambda: WithAdapter(6, 8), "holds lora_A, lora_B beside weight and bias"),
    "4-bit": (Linear4bit, r"Linear4bit \(bitsandbytes\) is not quantised yet; move the model to its device"),
    "GPTQ": (QuantLinear, "QuantLinear holds no weight as a floating-point matrix; load the model unquantised"),
    "dynamic": (dynamic, r"Linear is quantised \(torch.ao\)"),
    "int8": (int8, r"Linear is quantised \(integer weight\)"),
    "float8": (float8, "Linear has a weight of type Parameter, float8_e4m3fn"),
    "complex": (lambda: nn.Linear(6, 8, dtype=torch.complex64), "Parameter, complex64"),
    "lazy": (lazy, "LazyLinear has no shape yet; run one batch"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 8)), "computes its weight .parametrizations"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 8)), "remove_parametrizations first"),
    "parametrised bias": (bias_parametrised, "computes its bias"),
    "old weight norm": (old_weight_norm, "computes its weight from weight_g and weight_v"),
    "spectral norm": (lambda: nn.utils.spectral_norm(nn.Linear(6, 8)), "computes its weight from weight_orig"),
    "pruned": (pruned, "computes its weight from weight_orig .norm or pruning.; remove that first"),
}


@pytest.mark.parametrize("case", ADAPTED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_computes_a_linear_layer_is_adapted_exactly(case, dtype, make, shake):
    torch.manual_seed(0)
    model, state = nn.Sequential(ADAPTED[case]()).to(dtype), torch.get_rng_state()
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert unfit(model[0]) is None and list(find_targets(model)) == ["0"]
    assert torch.equal(torch.get_rng_state(), state)
    base, twin = model(x), copy.deepcopy(model)
    for kind in ("lora", "pissa", "svft"):
        adapters = install(model, make(kind, find_targets(model)))
        assert torch.equal(model(x), base)  # by the layer's own call, bit for bit
        shake(adapters)
        y, expected = model(x), copy.deepcopy(twin)
        y += 1
        y.float().sum().backward()
        if dtype == torch.float64:
            with torch.no_grad():
                expected[0].weight += adapters.layer_adapters()["0"].delta()
            torch.testing.assert_close(y, expected(x) + 1, rtol=1e-9, atol=1e-9)
            copied = copy.deepcopy(model)
            torch.testing.assert_close(copied(x) + 1, y)
        adapters.merge()
        adapters.detach()
        assert type(model[0]) is type(twin[0]) and torch.equal(model[0].weight, twin[0].weight)


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_does_not_is_named_with_what_to_do(case):
    layer, said = LEFT_OUT[case][0](), LEFT_OUT[case][1]
    model = nn.ModuleDict({"first": nn.Linear(6, 8), "odd": layer})
    assert not is_linear(layer)
    selection = select(model)
    assert list(selection.chosen) == ["first"] and list(selection.left_out) == ["odd"]
    assert re.search(said, selection.left_out["odd"]) and len(selection.left_out["odd"]) < 160
    with pytest.raises(UserError, match=f"target 'odd' cannot be adapted: .*{said}"):
        find_targets(model, ["odd"])
    with pytest.raises(UserError, match=rf"leave no layer to adapt \(odd: .*{said}"):
        lorax.attach(nn.ModuleDict({"odd": layer}))


def test_the_buffers_and_the_weight_are_as_before_the_trial():
    layer = Counting(6, 8)
    assert is_linear(layer) and float(layer.calls) == 0 and layer.training
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    assert find_kind(layer) is None  # asked again: it changed, and NaN shows nothing


def test_on_the_meta_device_the_class_is_tried_on_a_small_layer():
    with torch.device("meta"):
        model = nn.Sequential(FalconLinear(6, 8), Scaled(6, 8))
    selection = select(model)
    assert list(selection.chosen) == ["0"] and selection.left_out["1"].startswith("Scaled")


def test_layers_of_one_reason_are_counted_not_listed():
    model = nn.Sequential(nn.Linear(6, 6), *(Scaled(6, 6) for _ in range(5)))
    with pytest.warns(UserWarning, match="left out 1 and 4 more .*: Scaled has") as seen:
        lorax.attach(model, rank=2)
    assert len(seen) == 1 and len(str(seen[0].message)) < 300
    model[3].weight.data.zero_()
    model[3].bias.data.zero_()


def test_nothing_is_said_of_other_modules():
    for module in (nn.Bilinear(2, 3, 4), nn.LayerNorm(3), nn.Conv1d(2, 2, 1), nn.Identity(), nn.Linear(2, 2)):
        assert unfit(module) is None
