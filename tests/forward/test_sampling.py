"""Completions that are drawn: by the model's own distribution, alike with and without a cache."""

import pytest
import torch
from small_training import encode

from lorax.forward.active import active
from lorax.forward.decode import Stop
from lorax.forward.generation import CausalText
from lorax.forward.sampling import Drawn, Sampler, draw


def completion(number):
    return Drawn([], 1, 1, False, [number])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_come_as_often_as_the_model_says(temperature):
    logits = torch.tensor([0.3, -torch.inf, 1.7, -2.0])
    numbers = [(i + 0.5) / 1000 for i in range(1000)]
    tokens = Sampler(temperature)(logits.expand(1000, 4), [completion(number) for number in numbers])
    shares = tokens.bincount(minlength=4) / 1000
    assert (shares - torch.softmax(logits / temperature, 0)).abs().max() <= 1.01e-3 and shares[1] == 0
    edge = Sampler(temperature)(logits[None], [completion(1 - 2**-53)])
    assert edge.item() == 3


def test_temperature_zero_is_greedy():
    assert Sampler(0.0)(torch.tensor([[0.0, 2.0, 1.0]]), [completion(0.99)]).item() == 1


def drawn(loaded, task, share, lanes=1, temperature=1.0):
    modality = CausalText(loaded, share=share)
    rows = encode(task, loaded, "train")[:5]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(5 * lanes * 3, 8, generator=generator, dtype=torch.float64).tolist()
    every = [Drawn.begin(rows[i // 3 % 5].ids, own) for i, own in enumerate(numbers)]
    stop = Stop(frozenset({257, *range(40)}), 8)
    with torch.no_grad(), modality.open():
        draw(modality, rows * lanes, every, lanes, lambda chosen: active([]), stop, Sampler(temperature))
    assert all(each.finished for each in every)
    return [each.tokens for each in every], [stop.cut(each.tokens) for each in every]


def test_a_cache_changes_no_completion(toy, sums):
    """Some completions end early and leave the batch; prompts share a beginning, or do not."""
    loaded = toy(dtype="float64", hidden=16, layers=1)
    for system in (None, "Compute the number that this sum has, please: "):
        sums.system = system
        tokens, _ = drawn(loaded, sums, share=True)
        assert tokens == drawn(loaded, sums, share=False)[0]
        assert 1 < len({len(each) for each in tokens}) and len({*map(tuple, tokens)}) > 5


def test_greedy_draws_are_the_decoder_s_completions(toy, sums):
    loaded = toy(dtype="float64", hidden=16, layers=1)
    sums.max_new_tokens = 8
    rows, modality = encode(sums, loaded, "train")[:5], CausalText(loaded)
    with torch.no_grad(), modality.open():
        modality.stop = lambda task: Stop(frozenset({257, *range(40)}), 8)
        [answers] = modality.predict(sums, rows, 1, lambda chosen: active([]))
    _, cut = drawn(loaded, sums, share=True, temperature=0.0)
    assert [modality.text(each) for each in cut[::3]] == [answer.value for answer in answers]
