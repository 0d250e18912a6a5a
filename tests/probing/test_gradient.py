"""Layer gradients: autograd's on the whole batch, and the model is as before."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from lorax.adapters.install import find_targets
from lorax.errors import UserError
from lorax.probing.gradient import layer_gradients
from lorax.probing.unreached import Unreached


class Net(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(6, 10), nn.Linear(10, 10), Conv1D(3, 10)
        self.drop, self.spare = nn.Dropout(0.5), nn.Linear(4, 4)
        self.to(dtype)

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.b(torch.tanh(self.a(x))))))


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean(), len(x)


def data(sizes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    draw = [(6, 3)[side] for side in (0, 1)]
    return [tuple(torch.randn(size, d, generator=generator).to(dtype) for d in draw) for size in sizes]


def test_equals_autograd_on_the_whole_batch_and_leaves_no_trace():
    model = Net().train()
    model.b.weight.requires_grad_(False)
    model.a.bias.grad = kept = torch.ones(10, dtype=torch.float64)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    batches = data([5, 2, 9])
    targets = {"a": model.a, "b": model.b, "out": model.out}
    gradients = layer_gradients(model, targets, loss, batches)
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert model.training and model.drop.training and model.a.bias.grad is kept
    assert all(p.grad is None for name, p in model.named_parameters() if name != "a.bias")
    model.eval().requires_grad_(True)
    whole = [torch.cat(side) for side in zip(*batches, strict=True)]
    (model(whole[0]) - whole[1]).square().mean().backward()
    for name, module in targets.items():
        wanted = module.weight.grad.T if name == "out" else module.weight.grad
        torch.testing.assert_close(gradients[name], wanted, rtol=1e-12, atol=1e-15)


def test_flags_come_back_after_an_error():
    model = Net().train()
    model.a.weight.requires_grad_(False)

    def broken(model, batch):
        loss(model, batch)[0].backward()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        layer_gradients(model, {"a": model.a}, broken, data([2]))
    assert model.training and not model.a.weight.requires_grad and model.b.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not model.a.weight._post_accumulate_grad_hooks


def test_bf16_gradients_accumulate_in_float32():
    batches = data([1] * 64)
    model = Net()
    exact = layer_gradients(model, {"b": model.b}, loss, batches)["b"]
    half = Net(torch.bfloat16)
    gradients = layer_gradients(half, {"b": half.b}, loss, data([1] * 64, torch.bfloat16))["b"]
    assert gradients.dtype == torch.float32
    assert float((gradients - exact).norm() / exact.norm()) < 1e-2


def test_tied_weights_count_once_and_unused_ones_are_named():
    model = Net()
    model.b2 = nn.Linear(10, 10).double()
    model.b2.weight = model.b.weight
    gradients = layer_gradients(model, {"b": model.b, "b2": model.b2}, loss, data([4]))
    alone = layer_gradients(model, {"b": model.b}, loss, data([4]))
    torch.testing.assert_close(gradients["b2"], alone["b"])
    with pytest.raises(UserError, match="does not reach spare"):
        layer_gradients(model, {"a": model.a, "spare": model.spare}, loss, data([4]))
    with pytest.raises(UserError, match="no batch"):
        layer_gradients(model, {"a": model.a}, loss, [])
    with pytest.raises(UserError, match="batch 0: the loss is nan"):
        layer_gradients(model, {"a": model.a}, lambda m, b: m(b[0]).sum() * float("nan"), data([4]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_labels_weight_batches_by_the_tokens_their_loss_counts(family):
    torch.manual_seed(0)
    small = {"vocab_size": 17, "bos_token_id": 0, "eos_token_id": 0}
    if family == "llama":
        shape = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**shape, **small)).double()
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, **small)).double()
    ids = torch.randint(17, (3, 8))
    labels = ids.clone()
    labels[0, :6] = labels[1, :2] = labels[2, 1:] = -100
    targets = find_targets(model)
    split = [{"input_ids": ids[i : i + 1], "labels": labels[i : i + 1]} for i in range(3)]
    gradients = layer_gradients(model, targets, None, split)
    whole = layer_gradients(model, targets, None, [{"input_ids": ids, "labels": labels}])
    for name in targets:
        torch.testing.assert_close(gradients[name], whole[name], rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match="batch 0: a mapping with labels"):
        layer_gradients(model, targets, None, [ids])


def test_many_long_names_fit_in_one_line():
    line = str(Unreached([f"model.encoder.layers.{i}.attention.output.dense.{'x' * 40}" for i in range(9)]))
    assert len(line) <= 300 and line.endswith("more; leave them out of targets")
