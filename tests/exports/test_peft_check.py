"""An export that stock PEFT would compute differently is refused, by whatever part of it is wrong."""

from __future__ import annotations

import copy
import importlib.util
import json

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorax.adapters.files.export import adapted_model
from lorax.adapters.install import find_targets, install
from lorax.errors import UserError
from lorax.exports import check, example, peft

IDS = torch.arange(14).view(2, 7)


def tiny(tied=True):
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=tied))


@pytest.fixture
def adapters(make, shake):
    model = tiny()
    adapters = shake(install(model, make("pissa", find_targets(model))), 0.1)
    model.get_input_embeddings().weight.requires_grad_(True).data.add_(0.1)
    return adapters


def spoiled(monkeypatch, tensors=lambda state: None, config=lambda data: None):
    """Let the exporter make a mistake."""
    write = peft._write

    def wrong(folder, said, state):
        tensors(state)
        config(said)
        write(folder, said, state)

    monkeypatch.setattr(peft, "_write", wrong)


Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
EMBED, HEAD = "model.embed_tokens", "lm_head"
PRE = "base_model.model."


def lose_the_head(config):
    config.update(ensure_weight_tying=False, modules_to_save=[EMBED])


SPOILED = {
    "a wrong number": (
        {"tensors": lambda s: s[f"{PRE}{Q}.lora_B.weight"][2, 1].add_(1)},
        f"{Q}: stock PEFT makes another change of it, relative error",
    ),
    "a sign": (
        {"tensors": lambda s: s[f"{PRE}{UP}.lora_A.weight"].neg_()},
        f"{UP}: stock PEFT makes another change of it, relative error 2$",
    ),
    "a wrong embedding": (
        {"tensors": lambda s: s[f"{PRE}{HEAD}.weight"][3].add_(1)},  # the tied one that PEFT reads last
        f"{EMBED}.weight: stock PEFT would not use its trained values",
    ),
    "a tensor lost": (
        {"tensors": lambda s: s.pop(f"{PRE}{Q}.lora_A.weight")},
        f"stock PEFT does not find its tensors: .*{Q}",
    ),
    "an embedding lost": (
        {"tensors": lambda s: s.pop(f"{PRE}{EMBED}.weight")},
        "stock PEFT cannot load the folder: .*embed_tokens",
    ),
    "the tied head lost": (
        {"tensors": lambda s: s.pop(f"{PRE}{HEAD}.weight"), "config": lose_the_head},
        f"{HEAD}.weight: stock PEFT would not use its trained values",
    ),
    "a layer lost": (
        {"config": lambda d: d["target_modules"].remove(Q)},
        f"{Q}: stock PEFT does not adapt it|stock PEFT cannot load|does not find",
    ),
    "another scale": (
        {"config": lambda d: d.update(lora_alpha=3 * d["r"])},
        "stock PEFT makes another change of it, relative error 2$",
    ),
}


@pytest.mark.parametrize("run", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("name", SPOILED)
def test_a_wrong_export_is_refused_and_leaves_no_folder(adapters, tmp_path, monkeypatch, name, run):
    """With a copy of the base, and with one that takes no memory."""
    changes, line = SPOILED[name]
    spoiled(monkeypatch, **changes)
    if not run:
        monkeypatch.setattr(example, "RUN_UP_TO", 10)
    with pytest.raises(UserError, match=f"cannot export.*{line}") as caught:
        adapters.export_peft(tmp_path / "a")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert list(tmp_path.iterdir()) == []


def test_more_layers_than_were_exported_are_noticed(make, shake, tmp_path, monkeypatch):
    model = tiny()
    adapters = shake(install(model, make("lora", find_targets(model, ["q_proj"]))))
    spoiled(monkeypatch, config=lambda data: data.update(target_modules=["q_proj", "k_proj"]))
    with pytest.raises(UserError, match="stock PEFT would adapt model.layers.0.self_attn.k_proj too|does not find"):
        adapters.export_peft(tmp_path / "a")


def test_an_output_that_differs_though_the_weights_agree(adapters, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_check_layers", lambda *_: None)
    spoiled(monkeypatch, lambda state: state[f"{PRE}{UP}.lora_A.weight"].add_(1))
    for verify in (None, {"input_ids": IDS}):
        with pytest.raises(UserError, match="stock PEFT computes another output, relative error"):
            adapters.export_peft(tmp_path / "a", verify=verify)
    with pytest.raises(UserError, match="the model fails on verify="):
        adapters.export_peft(tmp_path / "a", verify={"pixels": IDS})


def test_the_model_is_as_before_and_a_copy_of_the_base_takes_no_memory(adapters, tmp_path, monkeypatch):
    model = adapters.model.train()
    before, state = model(IDS).logits, {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    adapters.export_peft(tmp_path / "a")
    adapters.merge().export_peft(tmp_path / "b")
    adapters.unmerge()
    assert torch.equal(torch.get_rng_state(), generator) and model.training
    assert torch.equal(model(IDS).logits, before) and all(
        torch.equal(v, state[k]) for k, v in model.state_dict().items()
    )
    files = [load_file(tmp_path / x / "adapter_model.safetensors") for x in "ab"]
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    adapted = adapted_model(adapters)
    with adapted.as_base():
        base = check.copy_of_base(adapted, hollow=True)
        sizes = [p.untyped_storage().nbytes() for p in base.parameters()]
        assert max(sizes) <= 4 and [p.shape for p in base.parameters()] == [p.shape for p in tiny().parameters()]
        assert type(base).save_pretrained is LlamaForCausalLM.save_pretrained and "save_pretrained" not in vars(base)


def test_large_models_and_an_absent_peft_are_said_in_one_line(adapters, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peft, "VERIFY_UP_TO", 10)
    adapters.export_peft(tmp_path / "a")
    said = capsys.readouterr().out
    assert (
        said.count("\n") == 1 and "exported without verifying" in said and "more than 10; verify=True does it" in said
    )
    adapters.export_peft(tmp_path / "b", verify=True)
    adapters.export_peft(tmp_path / "c", verify=False)
    assert capsys.readouterr().out == ""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find(name, *a))
    adapters.export_peft(tmp_path / "d")
    assert capsys.readouterr().out == "exported without verifying: peft is not installed\n"
    with pytest.raises(UserError, match="verify: peft is not installed"):
        adapters.export_peft(tmp_path / "e", verify=True)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == list("abcd")


@pytest.mark.parametrize(
    ("dtype", "recenter"),
    [
        (torch.bfloat16, "fold"),
        pytest.param(torch.bfloat16, "carry", marks=pytest.mark.slow),
        pytest.param(torch.float64, "carry", marks=pytest.mark.slow),
        pytest.param(torch.float64, "fold", marks=pytest.mark.slow),
    ],
)
def test_other_precisions(make, shake, tmp_path, capsys, dtype, recenter):
    """float64 exact; under fold a 16-bit base keeps a rounding in W_fz that no adapter on W0 has: it is reported."""
    base = tiny().to(dtype)
    model = copy.deepcopy(base)
    adapters = shake(install(model, make("pissa", find_targets(model)), recenter=recenter), 0.1)
    report = adapters.export_peft(tmp_path)
    B, A = (load_file(tmp_path / "adapter_model.safetensors")[f"base_model.model.{Q}.lora_{x}.weight"] for x in "BA")
    assert A.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    delta = adapters.delta([Q])[Q].double()
    error = float((B.double() @ A.double() - delta).norm() / delta.norm())
    lossy = dtype == torch.bfloat16 and recenter == "fold"
    assert report["error"][Q] == pytest.approx(error, rel=1e-3) if lossy else report["error"][Q] == 0 and error < 1e-6
    assert ("relative error of the update up to" in capsys.readouterr().out) == lossy


def test_every_lane_is_exported_by_itself(make, shake, tmp_path):
    base, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), torch.randn(3, 6)
    model = copy.deepcopy(base)
    lanes = install(model, [make(kind, find_targets(model)) for kind in ("lora", "pissa", "banded")])
    import peft as stock

    for lane, adapters in enumerate(lanes):
        shake(adapters, 0.3).export_peft(tmp_path / str(lane), verify={"input": x})
        with adapters.pack.active([lane]):
            want = model(x)
        loaded = stock.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / str(lane))
        torch.testing.assert_close(loaded(x), want, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="cannot merge: 3 lanes share this base"):
        lanes[1].export_merged(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_tampered_folder_is_not_what_the_check_reads(adapters, tmp_path):
    """The check reads the files, not what was meant to be in them."""
    adapters.export_peft(tmp_path / "a")
    state = load_file(tmp_path / "a" / "adapter_model.safetensors")
    state[f"base_model.model.{Q}.lora_A.weight"][0] += 1
    save_file(state, tmp_path / "a" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{Q}: stock PEFT makes another change"):
        check.check_export(adapted_model(adapters), tmp_path / "a", dict.fromkeys(adapters.names()), None)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["bias"] == "none"


def test_the_comparison_runs_in_the_models_own_precision(adapters, tmp_path):
    """Trainer with bf16 leaves accelerate's autocast around the model's forward; a caller may have one too."""
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "bf16"
    try:
        model = accelerator.prepare_model(adapters.model)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
    forward = model.forward
    assert model is adapters.model and "_original_forward" in vars(model)
    adapters.export_peft(tmp_path / "a")
    adapters.export_merged(tmp_path / "b")
    with torch.autocast("cpu", torch.bfloat16):
        adapters.export_peft(tmp_path / "c")
        adapters.export_merged(tmp_path / "d")
    assert model.forward == forward
    tensors = [load_file(tmp_path / name / "adapter_model.safetensors") for name in "ac"]
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())


@pytest.mark.parametrize("rank", [0, -1, True, 2.0, "4"])
def test_a_rank_that_is_none_is_one_line(adapters, rank, tmp_path):
    with pytest.raises(UserError, match=f"^rank={rank!r}: a whole number of at least 1 is needed$"):
        adapters.export_peft(tmp_path / "a", rank=rank)
    assert list(tmp_path.iterdir()) == []
