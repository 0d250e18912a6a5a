"""Every architecture of the zoo, from attach to stock PEFT and a plain checkpoint: clean, or refused in one line."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
import transformers
from zoo import ZOO

import lorax

TOLERANCE = 1e-3  # relative, of the largest output; what was wrong was wrong by 0.05 and more


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def output(model, batch):
    with torch.no_grad():
        found = model.eval()(**batch)
    return (found.logits_per_image if hasattr(found, "logits_per_image") else found.logits).float()


def error(got, want):
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_architecture(name, tmp_path):
    torch.manual_seed(0)
    model, batch = ZOO[name]()
    base = copy.deepcopy(model.eval())
    start = output(model, batch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapters = lorax.attach(model, init="pissa", rank=4)
        assert error(output(model, batch), start) < 1e-6
        model(**batch).loss.backward()  # in eval mode: no dropout, no layer drop
    lines = [str(each.message) for each in said if each.category is UserWarning]
    assert not any("did not call" in line for line in lines)
    assert all("\n" not in line and len(line) <= 300 for line in lines if line.startswith("left out"))
    assert [key for key, value in adapters.named_parameters().items() if value.grad is None] == []
    covered = adapters.coverage
    assert covered.adapted + sum(covered.sizes.values()) <= covered.total and covered.share > 0.02
    with torch.no_grad():
        draw = torch.Generator().manual_seed(3)
        for parameter in adapters.parameters():
            parameter.sub_(0.05 * parameter.grad).add_(0.02 * torch.randn(parameter.shape, generator=draw))
    trained = output(model, batch)
    assert error(trained, start) > 0.001
    with adapters.disabled():
        assert torch.equal(output(model, batch), start)

    adapters.save(tmp_path / "saved", quiet=True)
    again = copy.deepcopy(base)
    lorax.load(again, tmp_path / "saved")
    assert error(output(again, batch), trained) < 1e-6
    _in_stock_peft(adapters, base, batch, trained, tmp_path / "peft")
    adapters.merge()
    assert error(output(model, batch), trained) < TOLERANCE
    adapters.unmerge()
    adapters.export_merged(tmp_path / "merged")
    plain, info = type(base).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert error(output(plain, batch), trained) < TOLERANCE
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    adapters.detach()
    state = base.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(output(model, batch), start)


def _in_stock_peft(adapters, base, batch, want, folder):
    """The exported folder computes the same in stock PEFT, or the export is refused in one line."""
    try:
        adapters.export_peft(folder)
    except lorax.UserError as refused:
        assert "\n" not in str(refused) and len(str(refused)) <= 300
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)
    assert error(output(stock, batch), want) < TOLERANCE
