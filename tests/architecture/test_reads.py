"""Layers whose weight is read without a call: left out, refused when named, and seen in the first forward pass."""

from __future__ import annotations

import functools
import re
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers as T  # noqa: N812
from torch import nn

import lorax
from lorax.adapters.targets import select
from lorax.architecture.reads import READ, SOMETIMES, how_read


def decorated(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


class Reader(nn.Module):
    """Reads weights in every way that counts, and in ways that do not."""

    def __init__(self, slow=False):
        super().__init__()
        self.slow = slow
        for name in ("called", "plain", "alias", "by_name", "deep", "off", "both", "typed"):
            setattr(self, name, nn.Linear(4, 4))
        self.listed = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.inner = nn.ModuleDict({"deep": nn.Linear(4, 4)})

    @decorated
    def forward(this, x):  # noqa: N805
        x = this.called(x.to(this.typed.weight.dtype))
        x = F.linear(x, this.plain.weight, this.plain.bias)
        alias = this.alias
        x = F.linear(x, alias.weight)
        x = x @ getattr(this.by_name, "weight").mT  # noqa: B009
        x = x @ this.inner.deep.weight
        if this.slow and this.off is not None:
            x = x @ this.off.weight
        else:
            x = this.off(x)
        x = this.both(x) if isinstance(this.both.weight, nn.Parameter) else x
        if len(x) > 2:
            x = x @ this.both.weight
        for layer in this.listed:
            x = F.linear(x, layer.weight)
        return this.typed(x)


class Child(Reader):
    def forward(self, x):
        return super().forward(x) + 1


class Other(Reader):
    def forward(self, x):
        return self.plain(x)


def test_how_each_layer_is_read():
    for cls in (Reader, Child):
        modules = dict(cls().named_modules())
        read = {name: how_read(name, modules) for name, module in modules.items() if isinstance(module, nn.Linear)}
        known = {name: why for name, why in read.items() if why is not None}
        names = ("plain", "alias", "by_name", "inner.deep", "listed.0", "listed.1")
        assert known == dict.fromkeys(names, READ) | {"both": SOMETIMES}
    assert how_read("off", dict(Reader(slow=True).named_modules())) == READ  # the other branch is never reached
    modules = dict(Reader().named_modules())
    with pytest.warns(UserWarning, match="both: its weight is read without a call in some branches; where it is"):
        assert lorax.attach(modules[""], targets=["both"], rank=2).names() == ["both"]
    assert how_read("plain", dict(Other().named_modules())) is None


def mamba():
    config = T.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4)
    return T.MambaForCausalLM(config)


def jamba():
    config = T.JambaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_experts=2, num_experts_per_tok=1, expert_layer_period=2, expert_layer_offset=1,
        attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False,
        pad_token_id=0,
    )  # fmt: skip
    return T.JambaForCausalLM(config)


def bloom():
    return T.BloomForCausalLM(T.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4))


def wavlm():
    return T.WavLMModel(
        T.WavLMConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, conv_dim=(16, 16),
            conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
        )
    )  # fmt: skip


def t5():
    return T.T5Model(T.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2))


@pytest.mark.parametrize(
    "make, read",
    [
        (mamba, {"dt_proj", "x_proj", "out_proj"}),
        (jamba, {"dt_proj"}),
        (wavlm, {"q_proj", "k_proj", "v_proj", "out_proj"}),
        (bloom, set()),  # it reads `dense` in a branch that its configuration switches off
        (t5, set()),  # it asks for the dtype of wo.weight
        (lambda: nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "b": nn.Linear(4, 4)}), {"out_proj"}),
    ],
)
def test_all_linear_leaves_them_out_with_a_word(make, read):
    with torch.device("meta"):
        model = make()
    selection = select(model, "all-linear")
    why = {name.rpartition(".")[2] for name, reason in selection.left_out.items() if "is read" in reason}
    assert why == read
    assert not read & {name.rpartition(".")[2] for name in selection.chosen if "mixer" in name or "mamba" in name}


def test_named_they_are_refused_and_an_expression_skips_them():
    for model in (mamba(), jamba()):
        with pytest.raises(lorax.UserError, match=r"target 'dt_proj' cannot be adapted \(.*0\.\w+\.dt_proj\): its wei"):
            lorax.attach(model, targets=["dt_proj"], rank=2)
        with pytest.raises(lorax.UserError, match="read without a call"):
            lorax.attach(model, targets="dt_proj", rank=2)
        assert not any("dt_proj" in name for name in lorax.attach(model, targets=".*_proj", rank=2).names())


@pytest.mark.parametrize("make", [mamba, jamba])
def test_what_is_adapted_acts_and_trains(make):
    torch.manual_seed(0)
    model, ids = make().eval(), torch.randint(3, 90, (2, 9))
    with pytest.warns(UserWarning, match="left out "):
        adapters = lorax.attach(model, rank=2)
    assert re.search(r"left out .*dt_proj.*its weight is read without a call", str(adapters))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = model(input_ids=ids).logits
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())
    adapters.merge()
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_torchs_fast_path_does_not_pass_adapters_by(padded):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 16)
    mask = torch.arange(5)[None] >= torch.tensor([5, 4, 3])[:, None] if padded else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = model(x, src_key_padding_mask=mask)
        adapters = lorax.attach(model, rank=2)
        assert {name.rpartition(".")[2] for name in adapters.names()} == {"linear1", "linear2"}
        keep = slice(None) if mask is None else ~mask
        torch.testing.assert_close(model(x, src_key_padding_mask=mask)[keep], base[keep], rtol=1e-4, atol=1e-5)
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        scored = model(x, src_key_padding_mask=mask)
        trained = model.train()(x, src_key_padding_mask=mask)
        torch.testing.assert_close(scored[keep], trained[keep], rtol=1e-4, atol=1e-5)
        assert (scored[keep] - base[keep]).abs().max() > 0.1
        adapters.detach()
        assert torch.equal(model.eval()(x, src_key_padding_mask=mask), base)


class Skips(nn.Module):
    """Calls one expert of two, and never `unused`."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.experts[0](x)


def test_a_layer_that_the_first_forward_does_not_call_is_named_once():
    model = Skips()
    hooks = [dict(module._forward_hooks) | dict(module._forward_pre_hooks) for module in model.modules()]
    adapters = lorax.attach(model, rank=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            model(torch.randn(2, 4))  # scoring, which may take other ways
    with pytest.warns(UserWarning, match="the first forward pass did not call unused: adapters there neither act"):
        model(torch.randn(2, 4)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 4))
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks  # later steps cost nothing
    adapters.detach()
    again = lorax.attach(model, rank=2)
    again.detach()
    assert hooks == [dict(module._forward_hooks) | dict(module._forward_pre_hooks) for module in model.modules()]
