"""What autograd lets one do with `nn.Linear` works with an adapted layer: the layer of weight W' is the oracle."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from lorax.adapters.adapted import reference_mode
from lorax.adapters.fused import function
from lorax.adapters.install import find_targets, install
from lorax.errors import UserError

LAYERS = {
    "bias": lambda: nn.Linear(6, 8, dtype=torch.float64),
    "no bias": lambda: nn.Linear(6, 8, bias=False, dtype=torch.float64),
    "Conv1D": lambda: Conv1D(8, 6).double(),
}
OTHERS = ["adalora", "banded", "only_a", "only_b"]


class One(nn.Module):
    """A layer with a name."""

    def __init__(self, layer):
        super().__init__()
        self.fc = layer

    def forward(self, x):
        return self.fc(x)


@pytest.fixture(params=["lora", "pissa", "xs", "svft", *(pytest.param(k, marks=pytest.mark.slow) for k in OTHERS)])
def kind(request):
    return request.param


def pair(make, shake, kind, layer="bias", lanes=1):
    """An adapted model, its handles, and for each lane the plain model whose weight is W'."""
    torch.manual_seed(0)
    model = One(LAYERS[layer]())
    plain = [copy.deepcopy(model) for _ in range(lanes)]
    targets = find_targets(model)
    plans = [make(kind, targets, seed) for seed in range(lanes)]
    handles = install(model, plans if lanes > 1 else plans[0])
    handles = handles if lanes > 1 else [handles]
    for seed, (handle, oracle) in enumerate(zip(handles, plain, strict=True)):
        shake(handle, seed=seed)
        change = handle.layer_adapters()["fc"].delta().detach()
        oracle.fc.weight.data += change.mT if layer == "Conv1D" else change
    return model, handles, plain


def input_of(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def plus_one(y):
    y += 1
    return y


def relu(y):
    return y.relu_()


def first_is_zero(y):
    y[..., 0] = 0
    return y


def a_view(y):
    y.view(-1, 2).mul_(3)
    return y


def a_slice(y):
    second = y[..., 4:]
    second += y[..., :4] / 2
    return y


def a_transpose(y):
    turned = y.transpose(0, -1)
    turned += 2
    return turned.contiguous() * turned


def used_twice(y):
    return y * torch.tanh(y)


def masked(y):
    return y.masked_fill_(y > 0.3, -1.0)


def added(y):
    return torch.ones_like(y).add_(y).mul_(y)


USES = [plus_one, relu, first_is_zero, a_view, a_slice, a_transpose, used_twice, masked, added]


@pytest.mark.parametrize(("layer", "lanes"), [("bias", 1), ("no bias", 1), ("Conv1D", 1), ("bias", 2)])
def test_operations_in_place_and_views_of_the_output(make, shake, kind, layer, lanes):
    model, handles, plain = pair(make, shake, kind, layer, lanes)
    trained = [p for handle in handles for p in handle.parameters()]
    for shape, uses in (((2, 3, 6), USES), ((2, 6), USES[:3]), ((2, 1, 2, 3, 6), USES[:3])):
        x = input_of(*shape).requires_grad_()
        for use in uses:
            y = use(model(x))
            blocks = x.chunk(lanes)
            # the oracle takes each lane's rows alone, so a use that mixes rows is not asked of two lanes
            if lanes == 1 or use is not a_transpose:
                expected = torch.cat([use(oracle(block)) for oracle, block in zip(plain, blocks, strict=True)])
                torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
                (there,) = torch.autograd.grad(expected.pow(2).sum(), [x])
                (here,) = torch.autograd.grad(y.pow(2).sum(), [x], retain_graph=True)
                torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-8)
            with reference_mode():
                slow = torch.autograd.grad(use(model(x)).pow(2).sum(), trained)
            fast = torch.autograd.grad(y.pow(2).sum(), trained)
            torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


INPUTS = {
    "1-D": lambda: input_of(6),
    "2-D": lambda: input_of(4, 6),
    "4-D": lambda: input_of(2, 3, 2, 6),
    "no rows": lambda: input_of(0, 6),
    "no tokens": lambda: input_of(2, 0, 6),
    "transposed": lambda: input_of(3, 4, 6).transpose(0, 1),
    "strided": lambda: input_of(4, 12)[:, ::2],
    "expanded": lambda: input_of(1, 1, 6).expand(2, 3, 6),
    "features last but not in memory": lambda: input_of(2, 6, 3).mT,
    "channels last": lambda: input_of(2, 3, 5, 6).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_inputs_of_any_shape_and_layout(make, shake, kind, layer):
    model, (handle,), (plain,) = pair(make, shake, kind, layer)
    for name, made in INPUTS.items():
        if layer == "Conv1D" and not made().is_contiguous():
            continue  # its own forward takes views only
        for learns in (True, False):
            x = made().requires_grad_(learns)
            y, expected = model(x), plain(x)
            torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
            wanted = [*handle.parameters(), *([x] if learns else [])]
            fast = torch.autograd.grad(y.pow(2).sum(), wanted)
            with reference_mode():
                slow = torch.autograd.grad(model(x).pow(2).sum(), wanted)
            torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert not model(x).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(model(input_of(2, 6)), plain(input_of(2, 6)))


@pytest.mark.parametrize(("lanes", "dropout"), [(1, 0.0), (3, 0.4)])
def test_a_derivative_of_the_derivative(make, shake, kind, lanes, dropout):
    """Hessian products of x and of all that trains; with gradient penalties in mind, through two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS["bias"](), nn.Tanh(), nn.Linear(8, 5, bias=False, dtype=torch.float64))
    plans = [make(kind, find_targets(model), seed) for seed in range(lanes)]
    handles = install(model, plans, dropout=dropout)
    for seed, handle in enumerate(handles):
        shake(handle, seed=seed)
    wanted = [input_of(2 * lanes, 3, 6).requires_grad_(), *(p for handle in handles for p in handle.parameters())]

    def twice():
        torch.manual_seed(3)
        first = torch.autograd.grad(model(wanted[0]).pow(3).sum(), wanted, create_graph=True)
        return first, torch.autograd.grad(sum(g.pow(2).sum() for g in first), wanted)

    fast = twice()
    with reference_mode():
        slow = twice()
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def test_the_second_derivative_is_the_right_one(make, shake, kind):
    model, (handle,), _ = pair(make, shake, kind)
    x = input_of(2, 6).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, *_: model(x), (x, *handle.parameters()))


def test_a_large_input_that_was_not_kept_says_so(make, shake, monkeypatch):
    monkeypatch.setattr(function, "_SMALL", 10)
    for kind, kept in (("lora", True), ("pissa", True), ("xs", False)):
        model, (handle,), _ = pair(make, shake, kind)
        x = input_of(2, 6).requires_grad_()
        y = model(x).pow(2).sum()
        if kept:
            torch.autograd.grad(y, [x, *handle.parameters()], create_graph=True)
            continue
        with pytest.raises(UserError, match=r"was not kept: run the forward inside .*reference_mode\(\)"):
            torch.autograd.grad(y, [x], create_graph=True)
        with reference_mode():
            torch.autograd.grad(model(x).pow(2).sum(), [x, *handle.parameters()], create_graph=True)


def test_backward_again_and_for_one_input_only(make, shake, kind):
    model, (handle,), (plain,) = pair(make, shake, kind)
    x = input_of(2, 3, 6).requires_grad_()
    y, wanted = model(x).pow(2).sum(), [x, *handle.parameters()]
    first, second = (torch.autograd.grad(y, wanted, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(y, [x])[0], torch.autograd.grad(plain(x).pow(2).sum(), x)[0])


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(make, shake, kind, reentrant):
    model, (handle,), _ = pair(make, shake, kind)
    x = input_of(2, 3, 6).requires_grad_()

    def block(x):
        y = model(x)
        y += 1
        return torch.tanh(model(y[..., :6]))  # the layer twice

    wanted = [x, *handle.parameters()]
    block(x).pow(2).sum().backward()
    plain = [tensor.grad.clone() for tensor in wanted]
    for tensor in wanted:
        tensor.grad = None
    checkpoint(block, x, use_reentrant=reentrant).pow(2).sum().backward()
    torch.testing.assert_close([tensor.grad for tensor in wanted], plain, rtol=1e-12, atol=1e-14)


def test_transforms_of_torch_func(make, shake, kind):
    model, (handle,), (plain,) = pair(make, shake, kind)
    x, v = input_of(4, 3, 6), input_of(4, 3, 6).flip(0)
    torch.testing.assert_close(torch.func.vmap(model)(x), plain(x), rtol=1e-9, atol=1e-9)
    for here, there in zip(torch.func.jvp(model, (x,), (v,)), torch.func.jvp(plain, (x,), (v,)), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.jacrev(model)(x[0, 0]), plain.fc.weight, rtol=1e-9, atol=1e-9)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, v))).tangent
    torch.testing.assert_close(tangent, v @ plain.fc.weight.mT, rtol=1e-9, atol=1e-9)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_func = torch.func.grad(lambda given: torch.func.functional_call(model, given, (x,)).pow(2).sum())(named)
    there = torch.autograd.grad(model(x).pow(2).sum(), list(named.values()))
    torch.testing.assert_close(list(by_func.values()), list(there))


def test_other_tensors_in_the_place_of_the_trained_ones(make, shake, kind):
    """Fast weights: the gradient goes to what `functional_call` puts there, not to the parameters."""
    model, (handle,), _ = pair(make, shake, kind)
    twin, x = copy.deepcopy(model), input_of(2, 3, 6)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    fast = {name: (2 * model.get_parameter(name).detach() + 0.1).requires_grad_() for name in names}
    with torch.no_grad():
        for name in names:
            twin.get_parameter(name).copy_(fast[name])
    y, expected = torch.func.functional_call(model, fast, (x,)), twin(x)
    torch.testing.assert_close(y, expected)
    here = torch.autograd.grad(y.pow(2).sum(), list(fast.values()))
    there = torch.autograd.grad(expected.pow(2).sum(), [twin.get_parameter(name) for name in names])
    torch.testing.assert_close(here, there)
    assert torch.equal(model(x), pair(make, shake, kind)[0](x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model(make, shake, kind):
    model, _, (plain,) = pair(make, shake, kind)
    traced = torch.jit.trace(model, (input_of(2, 3, 6),))
    torch.testing.assert_close(traced(input_of(4, 2, 6)), plain(input_of(4, 2, 6)), rtol=1e-9, atol=1e-9)


def test_hooks_of_every_sort_fire_as_on_the_plain_layer(make, shake):
    """Registered before attach or after it, on the layer then standing there; all stay when it is given back."""

    def hooked(seen, layer, word):
        layer.register_forward_pre_hook(lambda m, args: seen.append(f"{word} pre"))
        layer.register_forward_hook(lambda m, args, y: seen.append(f"{word} forward"))
        layer.register_forward_hook(lambda m, args, kwargs, y: seen.append(f"{word} kwargs"), with_kwargs=True)
        layer.register_forward_hook(lambda m, args, y: seen.append(f"{word} always"), always_call=True)
        layer.register_full_backward_pre_hook(lambda m, g: seen.append(f"{word} backward pre"))
        layer.register_full_backward_hook(lambda m, g, h: seen.append(f"{word} backward {tuple(g[0].shape)}"))
        layer.register_state_dict_pre_hook(lambda m, prefix, keep: seen.append(f"{word} state"))
        layer.register_load_state_dict_post_hook(lambda m, keys: seen.append(f"{word} load"))

    def run(model):
        model(input_of(2, 3, 6).requires_grad_()).sum().backward()
        model.load_state_dict(model.state_dict())

    logs = []
    for adapts in (False, True):
        torch.manual_seed(0)
        model, seen = One(LAYERS["bias"]()), []
        logs.append(seen)
        hooked(seen, model.fc, "before")
        adapters = install(model, make("lora", find_targets(model))) if adapts else None
        hooked(seen, model.fc, "after")
        run(model)
        if adapters is not None:
            adapters.detach()
        run(model)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 32


def test_a_backward_hook_that_came_after_attach_stays_at_detach(make):
    seen, model = [], One(LAYERS["bias"]())
    adapters = install(model, make("lora", find_targets(model)))
    handle = model.fc.register_full_backward_hook(lambda m, g, h: seen.append(tuple(h[0].shape)))
    model(input_of(2, 6).requires_grad_()).sum().backward()
    adapters.detach()
    model(input_of(3, 6).requires_grad_()).sum().backward()
    handle.remove()
    model(input_of(3, 6).requires_grad_()).sum().backward()
    assert seen == [(2, 8), (3, 8)]


def test_a_backward_hook_may_change_the_gradient(make, shake, kind):
    model, (handle,), (plain,) = pair(make, shake, kind)
    x = input_of(2, 3, 6).requires_grad_()
    for module in (model, plain):
        module.fc.register_full_backward_hook(lambda m, to_input, to_output: (to_input[0] * 3,))
    here, there = (torch.autograd.grad(module(x).pow(2).sum(), x)[0] for module in (model, plain))
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)


def test_a_base_weight_that_is_switched_on_learns(make, shake, kind):
    model, _, (plain,) = pair(make, shake, kind)
    model.fc.weight.requires_grad_(True)
    for module in (model, plain):
        module(input_of(2, 3, 6)).relu_().pow(2).sum().backward()
    torch.testing.assert_close(model.fc.weight.grad, plain.fc.weight.grad, rtol=1e-9, atol=1e-9)


def test_autocast_and_a_change_in_place(make, shake):
    for kind in ("lora", "pissa", "xs"):
        model, (handle,), (plain,) = pair(make, shake, kind)
        model.float(), plain.float()
        x = input_of(2, 3, 6).float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, expected = plus_one(model(x)), plus_one(plain(x))
        assert y.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(y, expected, rtol=2e-2, atol=5e-2)
        y.float().pow(2).sum().backward()
        assert x.grad is not None and all(p.grad is not None for p in handle.parameters())


def test_the_fused_form_costs_one_view_more_than_it_did(make):
    """A biased layer of 3-D input: the output is no view, at the price of one operation without a copy."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen = (*self.seen, func.name())
            return func(*args, **(kwargs or {}))

    model = One(LAYERS["bias"]())
    install(model, make("lora", find_targets(model)))
    x = input_of(2, 3, 6).requires_grad_()
    model(x).sum().backward()
    with Count() as count:
        y = model(x)
        forward = len(count.seen)
        y.sum().backward()
    products = [name for name in count.seen if name.split("::")[1].split(".")[0] in ("mm", "addmm", "addmm_", "bmm")]
    assert len(products) == 8 and forward <= 14 and len(count.seen) <= 36


def test_a_change_in_place_where_nothing_is_added(make, shake):
    """Switched off, in plain operations, and merged: the output is still one's own."""
    model, (handle,), (plain,) = pair(make, shake, "lora")
    x = input_of(2, 3, 6).requires_grad_()
    with handle.disabled(), reference_mode():
        y = plus_one(model(x))
    torch.manual_seed(0)
    base = One(LAYERS["bias"]())
    torch.testing.assert_close(y, plus_one(base(x)))
    handle.merge()
    with reference_mode():
        torch.testing.assert_close(relu(model(x)), relu(plain(x)))
    torch.testing.assert_close(relu(model(x)), relu(plain(x)))


@pytest.mark.slow
def test_a_compiled_model(make, shake, kind):
    model, (handle,), (plain,) = pair(make, shake, kind)
    compiled, x = torch.compile(model, backend="aot_eager"), input_of(2, 3, 6).requires_grad_()
    here, there = plus_one(compiled(x)), plus_one(plain(x))
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
    (to_x, *_), (expected,) = (torch.autograd.grad(y.pow(2).sum(), x) for y in (here, there))
    torch.testing.assert_close(to_x, expected, rtol=1e-9, atol=1e-9)
