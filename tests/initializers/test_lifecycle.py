"""What every method's adapter can do once it is trained: pack, save without a decomposition, export or say why not."""

import pytest
import torch
from peft import PeftModel
from torch import nn

import lorax
from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.initializers.registry import build, get, names

LINEAR = [name for name in names() if get(name).has_factors and get(name).adapts == "linear"]
CASES = [(name, {}) for name in LINEAR] + [
    ("svf", {"param": "sigmoid", "normalise": True}),
    ("corda", {"mode": "kpm"}),
    ("lora_fa", {"projected": True}),
]
each = pytest.mark.parametrize("name,fields", CASES, ids=[f"{name}{i}" for i, (name, _) in enumerate(CASES)])
pytestmark = pytest.mark.filterwarnings("ignore:.*acts while it trains")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(10, 12), nn.Linear(12, 10, bias=False)
        self.double()

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def data(seed=0):
    return torch.randn(24, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss(model, batch):
    return (model(batch) - 1).square().mean()


def method(name, fields):
    return build(name, shared={"rank": 3}, own=fields)


def plans(model, name, fields, seed=0):
    return make_factors(model, method(name, fields), loss=loss, batches=[data()], seed=seed)


def step(adapters, value):
    optimiser = torch.optim.Adam(adapters if isinstance(adapters, list) else adapters.parameters(), lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        value().backward()
        optimiser.step()


def trained(name, fields, seed=0):
    model = Net()
    [adapters] = install(model, [plans(model, name, fields, seed)], info=[{"init": {"name": name}}])
    step(adapters, lambda: loss(model, data(seed)))
    return model, adapters


@each
def test_packed_runs_are_single_runs(name, fields):
    model = Net()
    handles = install(
        model, [plans(model, name, fields, 0), plans(model, "lora", {}, 1), plans(model, name, fields, 2)]
    )
    x = torch.cat([data(0), data(1), data(2)])
    step([p for handle in handles for p in handle.parameters()], lambda: 3 * loss(model, x))
    for seed, (handle, what) in enumerate(zip(handles, [(name, fields), ("lora", {}), (name, fields)], strict=True)):
        _, alone = trained(*what, seed)
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(handle.state_dict()[key], value, rtol=1e-9, atol=1e-11)


@each
def test_a_saved_adapter_comes_back_without_a_decomposition(name, fields, tmp_path, monkeypatch):
    model, adapters = trained(name, fields)
    adapters.save(tmp_path, quiet=True)

    def never(*args, **kwargs):
        raise AssertionError("a decomposition is repeated")

    for function in ("svd", "eigh", "qr", "svdvals"):
        monkeypatch.setattr(torch.linalg, function, never)
    fresh = Net()
    back = lorax.load(fresh, tmp_path)
    assert torch.equal(fresh(data()), model(data()))
    assert back.count_trainable() == adapters.count_trainable() and back.eta() == adapters.eta()
    step(adapters, lambda: loss(model, data()))
    step(back, lambda: loss(fresh, data()))
    assert torch.equal(fresh(data()), model(data()))  # and it trains on as it would have


@each
def test_it_exports_to_stock_peft_or_says_why_not(name, fields, tmp_path):
    model, adapters = trained(name, fields)
    if not get(name).changes_weight:
        with pytest.raises(lorax.UserError, match="cannot export down: its experts are weighted by the input"):
            adapters.export_peft(tmp_path / "peft")
        assert not (tmp_path / "peft").exists()
        return
    adapters.export_peft(tmp_path / "peft")
    theirs = PeftModel.from_pretrained(Net(), tmp_path / "peft", autocast_adapter_dtype=False)
    torch.testing.assert_close(theirs(data()), model(data()), rtol=1e-12, atol=1e-12)
    adapters.merge()
    torch.testing.assert_close(theirs(data()), model(data()), rtol=1e-12, atol=1e-12)
