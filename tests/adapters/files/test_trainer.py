from __future__ import annotations

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lorax.adapters.install import find_targets, install
from lorax.adapters.load import load
from lorax.errors import UserError


class Rows(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        ids = (torch.arange(6) * (index + 1)) % 20
        return {"input_ids": ids, "labels": ids}


def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def trainer(model, path, steps):
    arguments = TrainingArguments(
        output_dir=str(path), max_steps=steps, save_steps=3, per_device_train_batch_size=4, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1, seed=1, lr_scheduler_type="constant",
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=Rows())


@pytest.mark.parametrize("kind", ["pissa", "svft"])
def test_trainer_checkpoints_hold_the_adapter_only_and_resume(make, tmp_path, kind, capsys):
    model = tiny()
    factors = make(kind, find_targets(model))
    adapters = install(model, factors, dropout=0.2)
    run = trainer(model, tmp_path / "a", 6)
    run.train()
    saved = load_file(tmp_path / "a" / "checkpoint-3" / "model.safetensors")
    assert saved and all(".lanes." in key for key, value in saved.items() if value.numel())

    again = tiny()
    resumed = install(again, factors, dropout=0.2)
    second = trainer(again, tmp_path / "b", 6)
    second.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert second.state.global_step == 6
    for key, value in adapters.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    assert "missing" not in capsys.readouterr().err

    fresh = tiny()
    load(fresh, tmp_path / "a" / "checkpoint-6")
    ids = torch.arange(6)[None]
    assert torch.equal(fresh.eval()(ids).logits, model.eval()(ids).logits)
    with pytest.raises(UserError, match="lacks"):
        model.load_state_dict(dict(sorted(saved.items(), key=lambda item: ".lanes." in item[0])[:-1]), strict=False)
    base = copy.deepcopy(tiny().state_dict())
    model.load_state_dict(base, strict=False)
    adapters.detach()
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*adapters alone")
def test_a_folder_of_adapters_is_never_read_as_a_model(make, shake, tmp_path):
    """What save_pretrained writes stops every plain loader, and no model's weights are written over."""
    tiny().save_pretrained(tmp_path / "base")
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    model = tiny()
    adapters = shake(install(model, make("lora", find_targets(model))))
    with pytest.raises(UserError, match="base holds a model, whose weights would go; use .*export_merged"):
        model.save_pretrained(tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == weights
    with pytest.warns(UserWarning, match="holds the adapters alone, not a model"):
        model.save_pretrained(tmp_path / "new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "checkpoint-1", state_dict=None, is_main_process=True)  # Trainer's call
    for folder in ("new", "checkpoint-1"):
        model.config.save_pretrained(tmp_path / folder)
        with pytest.raises(RuntimeError):
            LlamaForCausalLM.from_pretrained(tmp_path / folder)
        with pytest.raises(RuntimeError, match="size mismatch"):
            tiny().load_state_dict(load_file(tmp_path / folder / "model.safetensors"), strict=False)
        load(back := tiny(), tmp_path / folder)
        ids = torch.arange(6)[None]
        assert torch.equal(back.eval()(ids).logits, model.eval()(ids).logits)
    for upload in (lambda: model.push_to_hub("me/it"), lambda: model.save_pretrained(tmp_path / "x", push_to_hub=True)):
        with pytest.raises(UserError, match="push_to_hub uploads no adapted model; use adapters.save"):
            upload()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        tiny().load_state_dict(model.state_dict())
    adapters.detach()
    model.save_pretrained(tmp_path / "plain")
    assert (tmp_path / "plain" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")
def test_the_best_checkpoint_comes_back_at_the_end(make, tmp_path):
    model = tiny()
    install(model, make("pissa", find_targets(model)))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, save_steps=2, eval_steps=2, eval_strategy="steps", report_to=[],
        per_device_train_batch_size=4, learning_rate=5e-1, use_cpu=True, disable_tqdm=True, load_best_model_at_end=True,
    )  # fmt: skip
    run = Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())
    run.train()
    run.save_model(str(tmp_path / "final"))
    ids, want = torch.arange(6)[None], model.eval()(torch.arange(6)[None]).logits
    for folder in (run.state.best_model_checkpoint, tmp_path / "final"):
        load(fresh := tiny(), folder)
        assert torch.equal(fresh.eval()(ids).logits, want)


def test_runs_that_share_a_base_are_not_saved_as_one_model(make, tmp_path):
    model = tiny()
    first, second = install(model, [make("lora", find_targets(model)), make("pissa", find_targets(model))])
    with pytest.raises(UserError, match="save_pretrained: 2 runs share this base; use adapters.save"):
        model.save_pretrained(tmp_path / "both")
    first.detach()
    second.detach()
    model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "both").exists() and (tmp_path / "plain" / "config.json").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["pissa", "svft", "adalora"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("own_generator", [False, True])
def test_gradient_checkpointing_changes_nothing(make, kind, reentrant, own_generator):
    grads = []
    for on in (False, True):
        model = tiny()
        adapters = install(model, make(kind, find_targets(model)), dropout=0.3)
        model.train()
        if own_generator:
            adapters.generator = torch.Generator().manual_seed(4)
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(5)
        for _ in range(2):
            model(**{key: value[None] for key, value in Rows()[2].items()}).loss.backward()
        grads.append([p.grad.clone() for p in adapters.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pissa", "svft"])
def test_torch_compile_traces_the_reference_form(make, kind, shake):
    model = tiny().eval()
    adapters = shake(install(model, make(kind, find_targets(model))), 0.05)
    ids = torch.arange(6)[None]
    results = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        logits = run(ids).logits
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in adapters.parameters())])
        model.zero_grad()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
