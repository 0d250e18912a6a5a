"""Models that are quantised while they are loaded: model=hf model.quantization=..."""

import pytest
import torch

import lorax
from lorax.adapters.kinds import effective, kind_of
from lorax.adapters.linears.quantised import QuantisedKind
from lorax.errors import UserError
from lorax.models import digest, load
from lorax.models.quantisation import PACKAGES, quantised_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    loaded = load({"name": "toy", "hidden": 128, "layers": 1})
    loaded.model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return str(path)


def spec(folder, quantization):
    return {"name": "hf", "path": folder, "quantization": quantization}


def test_the_digest_of_a_base_tells_how_it_is_quantised(folder):
    plain = digest({"name": "hf", "path": folder})
    assert digest(spec(folder, None)) == plain == quantised_digest(plain, None)
    assert len({plain, *(digest(spec(folder, name)) for name in PACKAGES)}) == 5


def test_what_cannot_be_is_one_line(folder, monkeypatch):
    with pytest.raises(UserError, match="model.quantization=int4: .*int8"):
        load(spec(folder, "int4"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"model.quantization=nf4 needs torchao: pip install 'lorax-bench\[quantised\]'"
    ):
        load(spec(folder, "nf4"))


@pytest.mark.quantised
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PACKAGES)
def test_pissa_starts_at_the_quantised_model_and_its_export_at_it_again(folder, name, training, tmp_path):
    """On a CPU bitsandbytes' int8 layers round their inputs in evaluation mode; 4-bit ones are not repacked here."""
    import peft

    def loaded():
        return load(spec(folder, name)).model.train(training)

    ids = torch.arange(20)[None]
    model, plain = loaded(), load(spec(folder, None)).model
    with torch.no_grad():
        before = model(ids).logits
    assert before.dtype == torch.float32 and float((before - plain(ids).logits).detach().abs().max()) > 0
    linear = [layer for layer, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    names = [layer for layer in linear if isinstance(kind_of(model.get_submodule(layer)), QuantisedKind)]
    weights = [effective(model.get_submodule(layer)) for layer in names]
    adapters = lorax.attach(model, "pissa", rank=4)
    assert len(names) >= 5 and torch.equal(model(ids).logits, before)
    for layer, weight in zip(names, weights, strict=True):
        given = plain.get_submodule(layer).weight.detach()
        assert torch.equal(effective(model.get_submodule(layer)), weight)
        assert 0 < float((weight - given).norm() / given.norm()) < 0.15
    assert (name == "bnb_8bit") != torch.equal(model.train(not training)(ids).logits, before)
    model.train(training)
    optimiser = torch.optim.SGD(adapters.parameters(), lr=0.05)
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    trained = model(ids).logits.detach()
    assert float((trained - before).abs().max()) > 1e-4
    adapters.export_peft(tmp_path / "adapter", verify=False)
    again = peft.PeftModel.from_pretrained(loaded(), str(tmp_path / "adapter")).train(training)
    torch.testing.assert_close(again(ids).logits, trained, rtol=1e-5, atol=1e-5)
    assert torch.equal(adapters.detach()(ids).logits, before)
