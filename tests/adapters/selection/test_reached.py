"""A layer that is called, and whose output no loss uses, is named once; calibration leaves it out of all-linear."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import lorax
from lorax.adapters.selection.reached import of_no_reached_kind


class Net(nn.Module):
    """A body of two blocks, a pooler that the loss does not ask for, and experts of which one runs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.pooler = nn.Linear(6, 6)

    def forward(self, x, pooled=False):
        for block in self.blocks:
            x = torch.tanh(block(x))
        x = self.experts[0](x)
        y = self.pooler(x)
        return y if pooled else x


def step(model, **more):
    model(torch.ones(2, 6), **more).square().sum().backward()


def said(work):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(each.message) for each in caught if each.category is UserWarning]


def hooks(model):
    return [
        *(hook for module in model.modules() for hook in (module._forward_hooks | module._forward_pre_hooks).values()),
        *(hook for p in model.parameters() for hook in (p._post_accumulate_grad_hooks or {}).values()),
    ]


@pytest.mark.parametrize("init", ["lora", "pissa", "lora_xs"])
def test_an_output_that_is_not_used_is_named_once(init):
    model = Net()
    adapters = lorax.attach(model, init, rank=2)
    assert said(lambda: step(model)) == []
    lines = said(lambda: step(model))
    assert len(lines) == 1 and lines[0].startswith("the first backward pass did not reach pooler: adapters there")
    assert len(lines[0]) <= 300 and hooks(model) == [] and said(lambda: step(model)) == []
    assert {name for name, p in adapters.named_parameters().items() if p.grad is None} == {
        f"{layer}.{name}"
        for layer in ("pooler", "experts.1", "experts.2")
        for name in adapters.layer_adapter(layer).trained()
    }


def test_nothing_is_said_where_all_is_reached_or_nothing_was_yet():
    model = Net()
    lorax.attach(model, rank=2)

    def forwards():
        for _ in range(3):  # as in a loss over several outputs
            model(torch.ones(2, 6), pooled=True)
        with torch.no_grad():
            model(torch.ones(2, 6))
        step(model, pooled=True)
        step(model)

    assert said(forwards) == [] and hooks(model) == []
    frozen = Net()
    adapters = lorax.attach(frozen, rank=2)
    for parameter in adapters.layer_adapter("pooler").parameters():
        parameter.requires_grad_(False)  # by its owner
    assert said(lambda: (step(frozen), step(frozen))) == []


def test_what_was_not_called_is_said_by_the_forward_pass_alone():
    model = Net()
    model.spare = nn.Linear(6, 6)
    lorax.attach(model, rank=2)
    lines = said(lambda: (step(model), step(model)))
    assert [line.partition(":")[0] for line in lines] == [
        "the first forward pass did not call spare", "the first backward pass did not reach pooler"
    ]  # fmt: skip


def test_detach_takes_the_hooks_and_a_copy_trains():
    model = Net()
    adapters = lorax.attach(model, rank=2)
    step(copy.deepcopy(model))
    step(model)
    adapters.detach()
    assert hooks(model) == [] and not any(p._post_accumulate_grad_hooks for p in adapters.parameters())


def test_calibration_leaves_it_out_of_all_linear_and_refuses_it_by_name():
    def loss(model, x):
        return model(x).square().mean()

    model = Net()
    model.experts = model.experts[:1]
    base = copy.deepcopy(model)
    batches = [torch.randn(4, 6) for _ in range(2)]
    with pytest.warns(UserWarning, match="left out pooler .*the loss on the calibration batches does not reach it"):
        adapters = lorax.attach(model, "lora_ga", rank=2, loss=loss, batches=iter(batches))
    assert adapters.names() == ["blocks.0", "blocks.1", "experts.0"] and adapters.coverage.share == pytest.approx(3 / 4)
    named = lorax.attach(
        base, "lora_ga", rank=2, loss=loss, batches=batches, targets=["0", "1"]
    )  # the same factors as without the pooler in the pass
    for name, value in adapters.state_dict().items():
        torch.testing.assert_close(value, named.state_dict()[name])
    with pytest.raises(lorax.UserError, match="the loss does not reach pooler; leave them out of targets"):
        lorax.attach(Net(), "lora_ga", rank=2, loss=loss, batches=batches, targets=["pooler", "blocks.0"])
    with pytest.raises(lorax.UserError, match=r"does not reach experts.1, experts.2, pooler"):
        lorax.attach(Net(), "lora_ga", rank=2, loss=loss, batches=batches)  # other batches may reach the experts


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_what_activations_do_not_show_is_left_out_alike(init):
    def loss(model, x):
        return model(x).square().mean()

    model = Net()
    model.experts = model.experts[:1]
    model.spare = nn.Linear(6, 6)
    with pytest.warns(UserWarning, match="left out spare .*no input of it is seen on the calibration batches"):
        adapters = lorax.attach(model, init, rank=2, loss=loss, batches=[torch.randn(8, 6)])
    assert "spare" not in adapters.names() and "blocks.0" in adapters.names()
    with pytest.raises(lorax.UserError, match="no token reaches spare; leave them out of targets"):
        other = Net()
        other.spare = nn.Linear(6, 6)
        lorax.attach(other, init, rank=2, loss=loss, batches=[torch.randn(8, 6)], targets=["spare", "blocks.0"])


def test_names_of_one_kind():
    assert of_no_reached_kind(["layers.3.experts.1.up", "pooler"], ["layers.0.experts.0.up"]) == ["pooler"]
