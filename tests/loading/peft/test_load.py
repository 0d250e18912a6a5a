"""Adapters that stock PEFT trained: equal logits, trained on, exported again; what is not held is one line."""

import copy
import json
import pickle

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo import ZOO

import lorax
from lorax.errors import UserError

QV = ["q_proj", "v_proj"]
pytestmark = pytest.mark.filterwarnings("ignore")
HELD = {
    "lora": ("qwen3", peft.LoraConfig(target_modules=QV, r=4, lora_alpha=10)),
    "rslora": ("qwen3", peft.LoraConfig(target_modules=QV, r=4, lora_alpha=10, use_rslora=True, lora_dropout=0.1)),
    "ranks and alphas": (
        "qwen3",
        peft.LoraConfig(
            target_modules=QV,
            r=4,
            rank_pattern={"q_proj": 2},
            alpha_pattern={r".*\.1\..*": 5},
            exclude_modules=["o_proj"],
        ),
    ),
    "one block": ("qwen3", peft.LoraConfig(target_modules=QV, layers_to_transform=[1])),
    "expression": ("qwen3", peft.LoraConfig(target_modules=r".*\.0\..*(q|up)_proj")),
    "all linear": ("qwen3", peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")),
    "head and norm": ("qwen3", peft.LoraConfig(target_modules=QV, modules_to_save=["lm_head", "norm"])),
    "classifier": ("bert_cls", peft.LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS")),
    "Conv1D": ("gpt2", peft.LoraConfig(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    "their biases": ("gpt2", peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, bias="lora_only")),
    "adalora": (
        "qwen3",
        peft.AdaLoraConfig(target_modules=QV, init_r=6, target_r=2, total_step=10, tinit=1, tfinal=2, lora_alpha=9),
    ),
}


def subject(architecture):
    torch.manual_seed(0)
    model, batch = ZOO[architecture]()
    return model.eval(), batch


def trained(model, batch, config, folder, steps=4):
    """Train with stock PEFT, save, and return its logits."""
    model = peft.get_peft_model(copy.deepcopy(model), config)
    steps_of(model, batch, [p for p in model.parameters() if p.requires_grad], steps)
    model.eval().save_pretrained(folder)
    return model(**batch).logits.detach()


def steps_of(model, batch, parameters, steps=2):
    optimiser = torch.optim.AdamW(parameters, lr=2e-2)
    for step in range(steps):
        model(**batch).loss.backward()
        optimiser.step()
        if hasattr(getattr(model, "base_model", None), "update_and_allocate"):
            model.base_model.update_and_allocate(step + 6)
        optimiser.zero_grad()


SLOW = ("one block", "expression", "all linear", "classifier", "Conv1D")
HELD_CASES = [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in HELD]


@pytest.mark.parametrize("case", HELD_CASES)
def test_pefts_adapter_computes_the_same_trains_on_and_goes_back(case, tmp_path):
    architecture, config = HELD[case]
    base, batch = subject(architecture)
    expected = trained(base, batch, copy.deepcopy(config), tmp_path / "theirs")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    assert not torch.allclose(base(**batch).logits, expected, atol=1e-3)
    adapters = lorax.load(base, tmp_path / "theirs")
    torch.testing.assert_close(base(**batch).logits, expected, rtol=0, atol=1e-6)
    steps_of(base, batch, adapters.parameters())
    moved = base(**batch).logits.detach()
    assert not torch.allclose(moved, expected, atol=1e-3)
    adapters.export_peft(tmp_path / "ours")
    adapters.save(tmp_path / "saved", quiet=True)
    adapters.detach()
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    back = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    torch.testing.assert_close(back(**batch).logits, moved, rtol=0, atol=2e-6)
    lorax.load(base, tmp_path / "saved")
    torch.testing.assert_close(base(**batch).logits, moved, rtol=0, atol=1e-6)


def test_biases_of_the_whole_model_come_in_and_are_put_back(tmp_path):
    base, batch = subject("gpt2")
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, bias="all")
    expected = trained(base, batch, config, tmp_path)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    adapters = lorax.load(base, tmp_path)
    torch.testing.assert_close(base(**batch).logits, expected, rtol=0, atol=1e-6)
    assert "transformer.ln_f.bias" in adapters.named_parameters()
    adapters.detach()
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_adalora_s_pruned_layers_and_its_scale_are_pefts(tmp_path):
    base, batch = subject("qwen3")
    _, config = HELD["adalora"]
    expected = trained(base, batch, copy.deepcopy(config), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    adapters = lorax.load(base, tmp_path)
    ranks = {name: f.rank for name, f in adapters.factors().items()}
    assert ranks == {n: len(tensors[f"base_model.model.{n}.lora_E"]) for n in ranks} and len(set(ranks.values())) > 1
    assert set(adapters.eta().values()) == {9 / (6 + 1e-5)}
    again = peft.PeftModel.from_pretrained(copy.deepcopy(subject("qwen3")[0]), tmp_path).eval()
    torch.testing.assert_close(again(**batch).logits, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(base(**batch).logits, expected, rtol=0, atol=1e-6)


DORA = {
    "plain": ("qwen3", peft.LoraConfig(target_modules=QV, r=4, lora_alpha=10, use_dora=True)),
    "biases, ranks, rslora": (
        "gpt2",
        peft.LoraConfig(
            target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, r=4, rank_pattern={"c_fc": 2}, use_rslora=True,
            use_dora=True,
        ),
    ),
    "dropout, head": (
        "bert_cls",
        peft.LoraConfig(target_modules=["query"], lora_dropout=0.1, task_type="SEQ_CLS", use_dora=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ["plain", *(pytest.param(case, marks=pytest.mark.slow) for case in list(DORA)[1:])])
def test_pefts_dora_computes_the_same_trains_on_and_starts_a_run(case, tmp_path):
    architecture, config = DORA[case]
    base, batch = subject(architecture)
    expected = trained(base, batch, copy.deepcopy(config), tmp_path / "theirs")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    again = lorax.attach(base, "from", path=str(tmp_path / "theirs"))
    if case != "dropout, head":  # init=from leaves out the head, which is a warning
        torch.testing.assert_close(base(**batch).logits, expected, rtol=0, atol=1e-6)
    again.detach()
    adapters = lorax.load(base, tmp_path / "theirs")
    assert adapters.info["from"]["kind"] == "DORA"
    torch.testing.assert_close(base(**batch).logits, expected, rtol=0, atol=1e-6)
    assert {name.rpartition(".")[2] for name in adapters.named_parameters()} >= {"A", "B", "magnitude"}
    steps_of(base, batch, adapters.parameters())
    moved = base(**batch).logits.detach()
    assert not torch.allclose(moved, expected, atol=1e-3)
    adapters.save(tmp_path / "saved", quiet=True)
    adapters.detach()
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    loaded = lorax.load(base, tmp_path / "saved")
    torch.testing.assert_close(base(**batch).logits, moved, rtol=0, atol=1e-6)
    loaded.export_peft(tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(subject(architecture)[0], tmp_path / "ours").eval()
    torch.testing.assert_close(back(**batch).logits, moved, rtol=0, atol=2e-6)
    loaded.merge()
    torch.testing.assert_close(base(**batch).logits, moved, rtol=0, atol=1e-5)


def test_a_dora_that_does_not_fit_is_one_line(tmp_path):
    base, batch = subject("qwen3")
    trained(base, batch, DORA["plain"][1], tmp_path / "dora", steps=1)
    length = f"{NAME}.lora_magnitude_vector"
    for index, (config, tensors, line) in enumerate([
        ({}, {length: None}, "lacks lora_magnitude_vector of model.layers.0.self_attn.q_proj"),
        ({}, {length: torch.ones(5)}, r"lora_magnitude_vector \(5,\), where \(32,\) is needed"),
        ({}, {length: torch.ones(1, 32)}, "where a vector is needed"),
        ({"use_dora": False}, {}, "holds lora_magnitude_vector of .*, which a LORA adapter does not have"),
        ({"peft_type": "ADALORA", "init_r": 4}, {}, "use_dora=True cannot be held exactly: AdaLoRA"),
    ]):  # fmt: skip
        (tmp_path / str(index)).mkdir()
        refused(subject("qwen3")[0], edited(tmp_path / "dora", tmp_path / str(index), config, **tensors), line)


def test_an_old_pickled_folder_is_read_as_data_and_code_in_it_is_not_run(tmp_path):
    base, batch = subject("qwen3")
    expected = trained(base, batch, peft.LoraConfig(target_modules=QV), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    lorax.load(base, tmp_path)
    torch.testing.assert_close(base(**batch).logits, expected, rtol=0, atol=1e-6)
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(UserError, match="pickle that is more than tensors|cannot be read"):
        lorax.load(subject("qwen3")[0], tmp_path)
    assert not (tmp_path / "harm").exists()


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


REFUSED = {
    "LOHA": (peft.LoHaConfig(target_modules=QV), "a LOHA adapter of PEFT; lorax reads LORA and ADALORA"),
    "LOKR": (peft.LoKrConfig(target_modules=QV), "a LOKR adapter"),
    "IA3": (peft.IA3Config(target_modules=QV, feedforward_modules=[]), "a IA3 adapter"),
    "VERA": (peft.VeraConfig(target_modules=["q_proj"]), "a VERA adapter"),
    "OFT": (peft.OFTConfig(target_modules=QV, oft_block_size=4), "a OFT adapter"),
    "prompts": (peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "a PROMPT_TUNING adapter"),
    "bias in the adapter": (peft.LoraConfig(target_modules=QV, lora_bias=True), "lora_bias=True"),
    "tokens": (peft.LoraConfig(target_modules=QV, trainable_token_indices=[1]), "trainable_token_indices="),
    "PiSSA": (
        peft.LoraConfig(target_modules=QV, init_lora_weights="pissa"),
        "init_lora_weights=pissa changes the base",
    ),
    "embedding": (peft.LoraConfig(target_modules=["embed_tokens"]), "adapts an embedding"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_kind_of_adapter_is_one_line_with_its_name(case, tmp_path):
    config, line = REFUSED[case]
    base, _ = subject("qwen3")
    peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path)
    refused(base, tmp_path, line)


def refused(base, folder, line):
    before = {key: value.clone() for key, value in base.state_dict().items()}
    with pytest.raises(UserError, match=line) as caught:
        lorax.load(base, folder)
    assert "\n" not in str(caught.value)
    after = base.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    base, batch = subject("qwen3")
    trained(base, batch, peft.LoraConfig(target_modules=QV, modules_to_save=["norm"]), path, steps=1)
    return path


MODEL = "base_model.model.model"
NAME = f"{MODEL}.layers.0.self_attn.q_proj"


def edited(folder, tmp_path, config=None, **tensors):
    """A copy with other settings and tensors; None takes one out."""
    said = json.loads((folder / "adapter_config.json").read_text()) | (config or {})
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    changed = load_file(folder / "adapter_model.safetensors") | tensors
    save_file({k: v for k, v in changed.items() if v is not None}, tmp_path / "adapter_model.safetensors")
    return tmp_path


DAMAGED = {
    "a missing factor": ({}, {f"{NAME}.lora_B.weight": None}, "lacks lora_B of model.layers.0.self_attn.q_proj"),
    "a missing layer": (
        {},
        {f"{NAME}.lora_A.weight": None, f"{NAME}.lora_B.weight": None},
        "lacks the factors of model.layers.0.self_attn.q_proj, which its target_modules name",
    ),
    "another width": ({}, {f"{NAME}.lora_A.weight": torch.ones(8, 7)}, r"do not fit a weight of shape \(32, 32\)"),
    "two ranks": ({}, {f"{NAME}.lora_A.weight": torch.ones(3, 32)}, "two ranks"),
    "another rank": ({"r": 4}, {}, "has rank 8, where its configuration says 4"),
    "a shard": ({}, {f"{NAME}.lora_A.weight": torch.ones(0)}, "where a matrix is needed"),
    "not finite": ({}, {f"{NAME}.lora_A.weight": torch.full((8, 32), torch.nan)}, "holds NaN or Inf"),
    "a layer nobody names": ({"target_modules": ["v_proj"]}, {}, "which its target_modules do not name"),
    "a layer of another model": (
        {}, {f"{NAME}s.lora_A.weight": torch.ones(8, 32)}, "q_projs, which this model lacks; did you mean"
    ),
    "a key of nothing": ({}, {f"{MODEL}.nrm.weight": torch.ones(32)}, "model.nrm.weight, which this model"),
    "no prefix": ({}, {"x.lora_A.weight": torch.ones(8, 32)}, "x.lora_A.weight is no tensor of an adapter"),
    "a saved module lost": ({}, {f"{MODEL}.norm.weight": None}, "lacks model.norm.weight, which its modules"),
    "a saved module of another width": ({}, {f"{MODEL}.norm.weight": torch.ones(5)}, r"shape \(5,\), here"),
    "a weight nobody named": ({"modules_to_save": None}, {}, "which its modules_to_save do not name"),
    "a setting of later days": ({"use_new_thing": True}, {}, "use_new_thing=True is no setting that is known"),
    "a text for a number": ({"lora_alpha": "8"}, {}, "lora_alpha=8: another number"),
    "layers repeated": ({"layer_replication": [[0, 2]]}, {}, "layer_replication=.*repeated layers"),
    "a list for a pattern": ({"rank_pattern": [1]}, {}, "rank_pattern=.*a mapping"),
    "an unknown bias": ({"bias": "some"}, {}, "bias=some: none, all or lora_only"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_is_one_line_and_the_model_stays(case, folder, tmp_path):
    config, tensors, line = DAMAGED[case]
    refused(subject("qwen3")[0], edited(folder, tmp_path, config, **tensors), line)


def test_files_that_are_missing_or_cut_are_one_line(folder, tmp_path):
    base, _ = subject("qwen3")
    edited(folder, tmp_path)
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:100])
    refused(base, tmp_path, "cannot be read")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model-00001-of-00002.safetensors")
    refused(
        base, tmp_path, "lacks adapter_model.safetensors; there are adapter_model-00001-of-00002.safetensors, pieces"
    )
    (tmp_path / "adapter_config.json").write_text("[1")
    refused(base, tmp_path, "adapter_config.json: cannot be read")
    (tmp_path / "inner").mkdir()
    (tmp_path / "adapter_config.json").rename(tmp_path / "inner" / "adapter_config.json")
    refused(base, tmp_path, "one level down are inner")


def test_a_tied_head_that_peft_trained_apart_is_refused_and_its_own_tie_is_held(tmp_path):
    base, batch = subject("llama_tied")
    config = peft.LoraConfig(target_modules=QV, modules_to_save=["lm_head"])
    trained(base, batch, config, tmp_path / "apart")
    refused(base, tmp_path / "apart", "lm_head.weight was trained apart from model.embed_tokens.weight")
    adapters = lorax.attach(base, targets=QV, modules_to_save=["lm_head"])
    steps_of(base, batch, adapters.parameters())
    moved = base(**batch).logits.detach()
    adapters.export_peft(tmp_path / "tied")
    adapters.detach()
    lorax.load(base, tmp_path / "tied")
    torch.testing.assert_close(base(**batch).logits, moved, rtol=0, atol=1e-6)
