"""Masks from hashed counters: uniform, uncorrelated, and each entry decided by its own place and key alone."""

from __future__ import annotations

import pytest
import torch

from lorax.adapters.dropout import below, draw, kept, key, quantise, scale
from lorax.adapters.pack_state import PackState
from lorax.errors import UserError

SHAPE = (6, 50, 331)


def keys(*numbers):
    return torch.tensor([key("run", number) for number in numbers])


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_rate_and_scale_belong_together(p):
    q = quantise(p)
    mask = 1 - kept(draw((1000, 333), keys(1)), q, torch.float32)
    assert abs(mask.double().mean().item() - q / 256) < 4 * (q / 256 * (1 - q / 256) / mask.numel()) ** 0.5
    assert scale(q) * (1 - q / 256) == pytest.approx(1, abs=1e-15)


def test_every_byte_of_a_word_is_uniform():
    """Pearson's chi-squared, 255 degrees of freedom: mean 255, sd 22.6; the eight bytes of a word and all together."""
    drawn = draw((64, 80, 256), keys(3))[0].view(-1, 8)
    for column in [drawn.flatten(), *drawn.unbind(1)]:
        counts = torch.bincount(column.long(), minlength=256).double()
        chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
        assert 255 - 5 * 22.6 < chi2 < 255 + 5 * 22.6


@pytest.mark.parametrize("q", [13, 128])
def test_neighbours_in_every_direction_are_uncorrelated(q):
    """Tokens, rows, columns, words, layers, steps: |r| < 4.5 / sqrt(n), with seeds and steps that follow each other."""
    layers = torch.tensor([key("layer", layer, 0) for layer in range(3)])
    many = torch.stack([draw(SHAPE, layers + key(0, step, 0)) for step in range(4)])
    dropped = (many < q).double() - q / 256
    variance = q / 256 * (1 - q / 256)
    for dim, lag in ((0, 1), (0, 3), (1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (4, 7), (4, 8), (4, 16), (4, 256)):
        a, b = dropped.narrow(dim, 0, dropped.shape[dim] - lag), dropped.narrow(dim, lag, dropped.shape[dim] - lag)
        assert abs((a * b).mean().item()) / variance < 4.5 / a.numel() ** 0.5, (dim, lag)


def test_an_entry_depends_on_its_place_and_key_alone():
    alone = draw((3, 5, 7), keys(4))[0]
    packed = draw((5, 9, 7), keys(1, 4, 2))
    assert torch.equal(packed[1][:3, :5], alone)
    assert not torch.equal(packed[0][:3, :5], alone)
    assert torch.equal(draw((3, 5, 16), keys(4))[0][..., :7], alone)
    assert [tuple(draw(shape, keys(1, 2)).shape) for shape in ((7,), (2, 7), (2, 3, 4, 9))] == [
        (2, 7), (2, 2, 7), (2, 2, 3, 4, 9),
    ]  # fmt: skip


def test_lanes_of_unlike_rates_share_a_draw():
    drawn, qs = draw((4, 9), keys(1, 2, 3)), [13, 0, 200]
    masks = kept(drawn, below(qs, drawn.device), torch.float32)
    for each, bytes_k, q in zip(masks, drawn, qs, strict=True):
        assert torch.equal(each, kept(bytes_k, q, torch.float32))
    assert below([13, 13], drawn.device) == 13


def test_a_layer_s_masks_move_with_key_name_and_call():
    pack, given = PackState(2), keys(1, 2)
    with pack.masks_from(given):
        first, again = pack.mask_keys("a", [0], given.device), pack.mask_keys("a", [0], given.device)
        other = pack.mask_keys("b", [0], given.device)
        with pack.active([1]):  # not the lanes that the keys are of
            assert len(pack.mask_keys("a", [0], given.device)) == 1
    with pack.masks_from(given):
        assert torch.equal(pack.mask_keys("a", [0, 1], given.device), first)
    assert len({*first.tolist(), *again.tolist(), *other.tolist()}) == 6


def test_a_checkpointed_pass_gets_its_masks_again_or_is_refused():
    pack, seen = PackState(1), []

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(int(pack.mask_keys("a", [0], x.device)))
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            seen.append(int(pack.mask_keys("a", [0], g.device)))
            return g

    x = torch.ones(1, requires_grad=True)
    with pack.masks_from(keys(7)):
        Layer.apply(x).backward()
    assert seen[0] == seen[1]
    with pack.masks_from(keys(7)), pytest.raises(UserError, match="a: called several times"):
        Layer.apply(Layer.apply(x)).backward()


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_no_probability(p):
    with pytest.raises(UserError, match="dropout="):
        quantise(p)
