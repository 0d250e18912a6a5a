from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from lorax.adapters import baselines
from lorax.adapters.install import find_targets, install
from lorax.adapters.load import load
from lorax.errors import UserError


@pytest.mark.parametrize("recenter", ["carry", "fold"])
def test_what_is_saved_comes_back_bit_for_bit(net, make, kind, shake, tmp_path, capsys, recenter):
    model = net()
    adapters = shake(install(model, make(kind, find_targets(model)), recenter=recenter, info={"init": kind}))
    x = torch.randn(3, 6, dtype=torch.float64)
    size = adapters.save(tmp_path)
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert "MB" in capsys.readouterr().out
    fresh = net()
    back = load(fresh, tmp_path)
    assert torch.equal(fresh(x), model(x)) and back.info == {"init": kind}
    assert back.eta() == adapters.eta() and back.recenter == recenter
    for key, value in adapters.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    assert [p.shape for p in back.parameters()] == [p.shape for p in adapters.parameters()]


def test_another_base_is_refused_by_name(net, make, tmp_path):
    adapters = install(model := net(), make("pissa", find_targets(model)))
    adapters.save(tmp_path, quiet=True)
    saved = json.loads((tmp_path / "adapter.json").read_text())["layers"]["down"]["digest"]
    with pytest.raises(UserError, match=f"down with digest {saved}.*this model has [0-9a-f]{{16}}.*other weights"):
        load(net(seed=1), tmp_path)
    with pytest.raises(UserError, match="same weights in another dtype"):
        load(net().float(), tmp_path)
    with pytest.warns(UserWarning, match="same weights in another dtype"):
        load(net().float(), tmp_path, check="warn")
    with pytest.raises(UserError, match="adapts down, which this model lacks"):
        load(nn.Sequential(nn.Linear(6, 8)), tmp_path)
    with pytest.raises(UserError, match="has adapters already"):
        load(model, tmp_path)
    with pytest.raises(UserError, match="has shape"):
        load(net(m=9), tmp_path, check="warn")
    with pytest.raises(UserError, match="check='of'"):
        load(net(), tmp_path, check="of")


def test_a_missing_or_damaged_file_is_one_line(net, make, tmp_path):
    with pytest.raises(UserError, match="no saved adapter"):
        load(net(), tmp_path)
    install(model := net(), make("lora", find_targets(model))).save(tmp_path, quiet=True)
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match="adapter.safetensors: its SHA-256 is .*: damaged"):
        load(fresh := net(), tmp_path)
    assert type(fresh.up) is nn.Linear


def test_a_trained_head_travels_along(net, make, tmp_path, shake):
    model = net()
    adapters = install(model, make("lora", find_targets(model, ["up"])))
    model.down.weight.requires_grad_(True)
    with torch.no_grad():
        model.down.weight.mul_(3)
    shake(adapters).save(tmp_path, quiet=True)
    fresh = net()
    load(fresh, tmp_path)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(fresh(x), model(x)) and fresh.down.weight.requires_grad


def test_the_merged_weight_does_not_change_the_digest(net, make, tmp_path, shake):
    adapters = shake(install(model := net(), make("pissa", find_targets(model))))
    x = torch.randn(3, 6, dtype=torch.float64)
    y = model(x)
    adapters.merge().save(tmp_path, quiet=True)
    load(fresh := net(), tmp_path)
    assert torch.equal(fresh(x), y)


@pytest.mark.parametrize("targets", [None, ["up"]])
def test_full_fine_tuning_has_the_same_face(net, tmp_path, shake, targets):
    model, base = net(), net()
    base.up.bias.requires_grad_(False)
    model.up.bias.requires_grad_(False)
    arm = baselines.FullModel(model, targets and find_targets(model, targets))
    assert arm.count_trainable() == (96 if targets is None else 56) and arm.names() == (targets or ["down", "up"])
    shake(arm)
    x = torch.randn(3, 6, dtype=torch.float64)
    y = model(x)
    assert not torch.equal(y, base(x))
    torch.testing.assert_close(base.up.weight + arm.delta()["up"], model.up.weight, rtol=0, atol=1e-7)
    with arm.disabled():
        assert torch.equal(model(x), base(x))
    assert torch.equal(model(x), y) and torch.equal(arm.frozen_weight("up"), base.up.weight)
    state = {key: value.clone() for key, value in arm.state_dict().items()}
    arm.save(tmp_path, quiet=True)
    load(fresh := net(), tmp_path)
    assert torch.equal(fresh(x), y)
    arm.detach()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in base.parameters()]
    arm.load_state_dict(state)
    assert torch.equal(model(x), y)
    with pytest.raises(UserError, match="no low-rank form"):
        arm.export_peft(tmp_path)


def test_the_frozen_arm_trains_nothing(net, tmp_path):
    arm = baselines.Frozen(model := net())
    assert arm.parameters() == [] and arm.count_trainable() == 0 and arm.names() == [] and arm.delta() == {}
    assert not any(p.requires_grad for p in model.parameters())
    arm.save(tmp_path, quiet=True)
    assert load(net(), tmp_path).parameters() == []
    arm.detach()
    assert all(p.requires_grad for p in model.parameters())


def test_state_of_other_adapters_is_refused(net, make):
    model, other = net(), net()
    adapters = install(model, make("lora", find_targets(model)))
    with pytest.raises(UserError, match="other tensors"):
        adapters.load_state_dict(install(other, make("xs", find_targets(other))).state_dict())
    small = {name: replace(f, A=f.A[:2], B=f.B[:, :2]) for name, f in make("lora", find_targets(net())).items()}
    with pytest.raises(UserError, match="shape"):
        adapters.load_state_dict(install(net(), small).state_dict())
