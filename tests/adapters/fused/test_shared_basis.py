import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorax.adapters.adapted import reference_mode
from lorax.adapters.install import find_targets, install


def conv(n, m):
    layer = Conv1D(m, n).double()
    nn.init.normal_(layer.weight)
    return layer


def gradients(model, x):
    x = x.clone().requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad((model(x) ** 3).sum(), [x, *trained])


def spanned(layer):
    """The weight's singular values, where the factors span it."""
    return layer.grouping().only_group.singular_values(layer.frozen())


@pytest.mark.parametrize("kind", ["svft", "banded"])
@pytest.mark.parametrize("layer", [lambda: nn.Linear(9, 6), lambda: nn.Linear(9, 11), lambda: conv(9, 6)])
@pytest.mark.parametrize("lanes", [1, 3])
def test_the_inputs_gradient_by_singular_vectors_is_that_of_the_weight(make, shake, kind, layer, lanes):
    torch.manual_seed(0)
    model, x = nn.Sequential(layer().double()), torch.randn(2 * lanes, 3, 9).double()
    one = make(kind, find_targets(model))
    handles = install(model, [one] * lanes if lanes > 1 else one)
    handles = handles if lanes > 1 else [handles]
    for seed, handle in enumerate(handles):
        shake(handle, seed=seed)
    fast = gradients(model, x)
    assert spanned(model[0]) is not None
    with reference_mode():
        slow = gradients(model, x)
    assert len(fast) == 1 + lanes
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_factors_that_do_not_span_the_weight_leave_its_gradient_alone(make, shake):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6).double())
    shake(install(model, make("svft", find_targets(model))))
    x = torch.randn(4, 9).double()
    gradients(model, x)
    assert spanned(model[0]) is not None
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-9  # far above rounding
    fast = gradients(model, x)
    assert spanned(model[0]) is None
    with reference_mode():
        for a, b in zip(fast, gradients(model, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
