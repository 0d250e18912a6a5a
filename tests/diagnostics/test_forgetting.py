"""Forgetting: an exact token mean, against the model's own loss, on text that is there everywhere."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from lorax.api import attach
from lorax.diagnostics.forgetting import forgetting, windows
from lorax.diagnostics.natural_text import Text, load_text
from lorax.errors import UserError
from lorax.models.registry import load
from lorax.probing.cache import Cache


@pytest.fixture(scope="module")
def toy():
    return load({"name": "toy"}, dtype="float64")


@pytest.fixture
def trained(toy):
    adapters = attach(toy.model, init="lora", rank=2)
    for number, parameter in enumerate(adapters.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    yield adapters
    adapters.detach()


def test_change_is_the_difference_of_exact_means(toy, trained):
    text = load_text(characters=4000)
    forgot = forgetting(toy, trained, text, tokens=900, window=64)
    rows, start = windows(toy, text, 900, 64)
    assert forgot["tokens"] == rows[:, start:].numel() >= 900

    def mean():
        with torch.no_grad():
            logits = toy.model(rows[:, :-1]).logits
        return float(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))

    adapted = mean()
    with trained.disabled():
        base = mean()
    assert forgot["adapted"] == pytest.approx(adapted, rel=1e-5) and adapted != base
    assert forgot["change"] == pytest.approx(adapted - base, rel=1e-5) and forgot["se"] > 0


def test_the_base_is_computed_once_for_all_arms(toy, trained, tmp_path):
    cache = Cache(tmp_path)
    first = forgetting(toy, trained, tokens=200, window=32, cache=cache)
    entries = list(tmp_path.rglob("*.safetensors"))
    assert forgetting(toy, trained, tokens=200, window=32, cache=cache) == first and len(entries) == 1
    assert forgetting(toy, trained, tokens=200, window=32) == first


def test_step_0_forgets_nothing_and_modes_are_kept(toy):
    adapters = attach(toy.model, init="pissa", rank=2, dropout=0.5)
    toy.model.train()
    forgot = forgetting(toy, adapters, tokens=100, window=32)
    assert forgot["change"] == 0 and toy.model.training
    toy.model.eval()
    adapters.detach()


def test_one_run_of_a_pack_is_measured_alone(toy):
    from lorax.adapters.install import find_targets, install
    from lorax.api import make_factors
    from lorax.initializers.registry import build

    targets = find_targets(toy.model)
    sets = [make_factors(toy.model, build(name, shared={"rank": 2}), targets) for name in ("lora", "pissa")]
    handles = install(toy.model, sets)
    for parameter in handles[1].parameters():
        parameter.data += 0.05
    assert forgetting(toy, handles[0], tokens=100, window=32)["change"] == 0
    assert forgetting(toy, handles[1], tokens=100, window=32)["change"] != 0
    for handle in handles:
        handle.detach()


def test_the_default_text_is_long_enough_and_says_what_it_is(toy):
    text = load_text()
    assert "PSF" in text.source and len(text.text) > 300_000
    with pytest.raises(UserError, match="tokens, .* are needed"):
        windows(toy, Text("short", "mine"), 50_000)


def test_texts_of_the_user(tmp_path):
    plain = tmp_path / "a.txt"
    plain.write_text("some words")
    assert load_text(str(plain)).text == "some words"
    table = tmp_path / "a.jsonl"
    table.write_text("".join(json.dumps({"text": word, "id": 1}) + "\n" for word in ("one", "two")))
    assert load_text(str(table)).text == "one\n\ntwo"
    assert load_text(str(table), characters=2).text == "one"
    (tmp_path / "a.csv").write_text('id,text\n1,"a, b"\n2,\n3,2024-01-01\n')
    assert load_text(str(tmp_path / "a.csv")).text == "a, b\n\n2024-01-01"
    (tmp_path / "b.jsonl").write_text('{"text": ["a", "b"]}\n')
    with pytest.raises(UserError, match="line 1: field 'text' is a list of 2 texts, not one text"):
        load_text(str(tmp_path / "b.jsonl"))
    with pytest.raises(UserError, match="no column 'txt'; did you mean 'text'"):
        load_text(str(table), column="txt")
    with pytest.raises(UserError, match="no such file"):
        load_text(str(tmp_path / "b.txt"))


def test_only_language_models_forget_text(trained):
    classifier = load({"name": "toy"}, labels=["a", "b"])
    assert forgetting(classifier, trained) is None
