"""A block's parts by structure alone, on made modules."""

from torch import nn

from lorax.architecture.blocks import Block, find_blocks


def linear(n, m):
    return nn.Linear(n, m, device="meta")


class _Attention(nn.Module):
    """The output projection is not the last one, as in Phi-3; only it has the block's width."""

    def __init__(self):
        super().__init__()
        self.out, self.qkv = linear(8, 8), linear(8, 24)


class _FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = linear(8, 16), linear(16, 8)

    def forward(self, x, scale=1.0):
        return self.down(self.up(x)) * scale


class _WithResidual(_FeedForward):
    def forward(self, x, residual):
        return super().forward(x) + residual


def blocks_of(**parts):
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict(parts)])
    modules = dict(model.named_modules())
    shapes = {
        name: (each.out_features, each.in_features) for name, each in modules.items() if isinstance(each, nn.Linear)
    }
    return find_blocks(modules, shapes)


def test_parts_of_a_block():
    expected = Block("layers.0.self_attn.out", "layers.0.mlp.down", "layers.0.mlp", None)
    assert blocks_of(self_attn=_Attention(), mlp=_FeedForward()) == [expected]
    assert blocks_of(mlp=_FeedForward(), self_attn=_Attention()) == [expected]
    assert blocks_of(self_attn=_Attention(), cross_attn=_Attention(), mlp=_FeedForward()) == [expected]
    assert blocks_of(self_attn=_Attention(), encoder_attn=_Attention(), mlp=_FeedForward()) == [expected]


def test_a_feed_forward_part_that_is_no_module_with_one_tensor_in():
    apart = {"intermediate": nn.Sequential(linear(8, 16)), "output": nn.Sequential(linear(16, 8), nn.LayerNorm(8))}
    [block] = blocks_of(attention=_Attention(), **apart)
    assert block.feed_forward is None and block.down == "layers.0.output.0" and block.norm == "layers.0.output.1"
    [block] = blocks_of(attention=_Attention(), mlp=_WithResidual())
    assert block.feed_forward is None and block.down == "layers.0.mlp.down"
    [block] = blocks_of(attention=_Attention(), fc1=linear(8, 16), fc2=linear(16, 8), norm=nn.LayerNorm(8))
    assert block == Block("layers.0.attention.out", "layers.0.fc2", None, None)  # which norm it is the code alone says


def test_experts_and_lists_without_attention_are_no_block_with_parts():
    experts = nn.ModuleList([_FeedForward(), _FeedForward()])
    assert blocks_of(attention=_Attention(), mlp=nn.ModuleDict({"gate": linear(8, 2), "experts": experts})) == [
        Block(None, None, None, None)
    ]
    stacked = nn.Module()
    stacked.weight = nn.Parameter(linear(8, 8).weight[None])
    assert blocks_of(attention=_Attention(), shared=_FeedForward(), experts=stacked) == [Block(None, None, None, None)]
    assert blocks_of(mixer=_FeedForward()) == [] == blocks_of(attention=_Attention())


def test_stages_hold_blocks_and_blocks_hold_lists():
    stage = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"attn": _Attention(), "mlp": _FeedForward()})]),
                           "reduction": linear(8, 16)})  # fmt: skip
    assert [block.down for block in blocks_of(**stage)] == ["layers.0.blocks.0.mlp.down"]
    parts = nn.ModuleList(
        [nn.ModuleDict({"SelfAttention": _Attention()}), nn.ModuleDict({"DenseReluDense": _FeedForward()})]
    )
    [block] = blocks_of(layer=parts)
    assert (
        block.attention == "layers.0.layer.0.SelfAttention.out"
        and block.feed_forward == "layers.0.layer.1.DenseReluDense"
    )
