"""Names that PEFT reads as something else, and what makes `AutoPeftModel...` work."""

from __future__ import annotations

import copy
import json
import warnings

import peft
import pytest
import torch
import transformers as T
from torch import nn

from lorax.adapters.install import find_targets, install
from lorax.errors import UserError
from lorax.exports.example import example_inputs, run
from lorax.exports.layout import target_modules
from tests.exports.mixtures import MODELS, SIZES

MLP = r".*(gate_proj|up_proj|down_proj)"
CASES = [
    ("deepseek_v3", ["down_proj", "o_proj"]),
    pytest.param("deepseek_v3", "all-linear", marks=pytest.mark.slow),
    pytest.param("deepseek_v3", ["gate_proj"], marks=pytest.mark.slow),
    pytest.param("qwen2_moe", MLP, marks=pytest.mark.slow),
    pytest.param("qwen3_moe", MLP, marks=pytest.mark.slow),
    pytest.param("mixtral", ["q_proj", "v_proj"], marks=pytest.mark.slow),
    pytest.param("llama4", MLP, marks=pytest.mark.slow),
    pytest.param("jamba", MLP, marks=pytest.mark.slow),
]


def in_peft(base, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


@pytest.mark.parametrize(("name", "targets"), CASES)
def test_dense_layers_are_not_taken_for_experts(make, shake, tmp_path, name, targets):
    """PEFT turns down_proj of such models into a parameter of the experts; unmerged and merged must be ours."""
    torch.manual_seed(0)
    base = MODELS[name]().eval()
    model = copy.deepcopy(base)
    found = find_targets(model, targets)
    first = {n: module for n, module in found.items() if ".0." in n}
    plans = make("pissa", first) | make("lora", {n: m for n, m in found.items() if n not in first})  # ranks 2r and r
    adapters = shake(install(model, plans), 0.1)
    adapters.export_peft(tmp_path, verify=False)
    inputs = example_inputs(base)
    ours, loaded = run(model, inputs), in_peft(base, tmp_path)
    bound = {"rtol": 0, "atol": 1e-6 * float(ours.abs().max())}
    torch.testing.assert_close(run(loaded, inputs), ours, **bound)
    torch.testing.assert_close(run(loaded.merge_and_unload(), inputs), ours, rtol=0, atol=10 * bound["atol"])
    assert float((run(base, inputs) - ours).abs().max()) > 100 * bound["atol"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    experts_of_old = ("gate_proj", "up_proj", "down_proj") if name != "llama4" else ()  # never named otherwise there
    stacked = {n for n in found if n.rpartition(".")[2].isdigit()}  # "<module>.<parameter>.<e>"
    mlp = {f"{n}.weight" for n in found if n.endswith(experts_of_old)}
    assert set(config.get("target_parameters", [])) == mlp | {n.rpartition(".")[0] for n in stacked}
    modules = len(found) - len(mlp) - len(stacked)
    assert len(config["target_modules"]) == modules or isinstance(config["target_modules"], str)


class Named(nn.Module):
    """Names that regular expressions, PEFT's suffixes and PEFT's own words could misread."""

    def __init__(self):
        super().__init__()
        linear = {name: nn.Linear(6, 6) for name in ("b", "lora_A", "base_layer", "default")}
        self.a = nn.ModuleDict({**linear, "lora_proj": nn.Sequential(nn.Linear(6, 6))})
        self.b, self.emb = nn.Linear(6, 6), nn.ModuleDict({"c": nn.Embedding(4, 6)})
        for name in ("a+b", "(x", "c"):
            self.add_module(name, nn.Linear(6, 6))

    def forward(self, x):
        for module in (*list(self.a.values()), self.b, self._modules["a+b"], self._modules["(x"], self.c):
            x = x + module(x)
        return x + self.emb["c"](torch.zeros(len(x), dtype=torch.long))


ALL = ["a+b", "(x", "a.b", "b", "c", "a.lora_A", "a.lora_proj.0", "a.base_layer", "a.default"]
ALONE = [["b"], ["a.b"], ["a+b", "(x"], ["c"], ["a.lora_A"], ["a.lora_proj.0"], ["a.base_layer"], ["a.default"]]


@pytest.mark.parametrize("names", [ALL, *(pytest.param(names, marks=pytest.mark.slow) for names in ALONE)])
def test_names_that_read_like_something_else(make, shake, tmp_path, names):
    torch.manual_seed(0)
    base, x = Named(), torch.randn(3, 6)
    model = copy.deepcopy(base)
    plans = {}
    for index, name in enumerate(names):  # adapters of several ranks: rank and alpha patterns
        plans |= make(["lora", "pissa", "only_b"][index % 3], {name: model.get_submodule(name)})
    shake(install(model, plans), 0.1).export_peft(tmp_path, verify={"x": x})
    torch.testing.assert_close(in_peft(base, tmp_path)(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_suffix_rule_is_met_by_a_regular_expression_only_where_it_must():
    model = Named()
    assert target_modules(model, ["a.b", "a+b"]) == ["a.b", "a+b"]
    assert target_modules(model, ["b", "a+b"]) == r"b|a\+b"  # a.b ends alike
    assert target_modules(model, ["c"]) == "c"  # an embedding ends alike


def test_a_layer_that_two_modules_hold_is_refused(make, shake, tmp_path):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Tanh(), nn.Linear(4, 4)))
    model[1][1] = model[0][0]
    adapters = shake(install(model, make("lora", find_targets(model, ["0"]))))
    with pytest.raises(UserError, match="cannot export 1.1: it is the same layer as 0.0, and PEFT adapts one"):
        adapters.export_peft(tmp_path / "a", verify=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["CAUSAL_LM", pytest.param("SEQ_CLS", marks=pytest.mark.slow)])
def test_auto_classes_find_task_and_base(make, shake, tmp_path, task):
    torch.manual_seed(0)
    kind, auto = {
        "CAUSAL_LM": (T.LlamaForCausalLM, peft.AutoPeftModelForCausalLM),
        "SEQ_CLS": (T.LlamaForSequenceClassification, peft.AutoPeftModelForSequenceClassification),
    }[task]
    base, folder = tmp_path / "base", tmp_path / "adapter"
    kind(T.LlamaConfig(**SIZES, tie_word_embeddings=True, num_labels=3, pad_token_id=0)).save_pretrained(base)
    model = kind.from_pretrained(base).eval()
    shake(install(model, make("lora", find_targets(model))), 0.1).export_peft(folder, verify=False)
    said = json.loads((folder / "adapter_config.json").read_text())
    assert said["task_type"] == task and said["base_model_name_or_path"] == str(base)
    loaded = auto.from_pretrained(folder, **({"num_labels": 3} if task == "SEQ_CLS" else {})).eval()
    inputs = example_inputs(model)
    torch.testing.assert_close(run(loaded, inputs), run(model, inputs), rtol=0, atol=1e-6)


BERT = T.BertConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
VIT = T.ViTConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16)


@pytest.mark.parametrize(
    ("kind", "config", "targets", "task", "modules"),
    [
        (T.BertForTokenClassification, BERT, ["query"], "TOKEN_CLS", ["classifier"]),
        pytest.param(
            T.BertForQuestionAnswering, BERT, ["query"], "QUESTION_ANS", ["qa_outputs"], marks=pytest.mark.slow
        ),
        (T.BertForQuestionAnswering, BERT, ["query", "qa_outputs"], None, None),  # PEFT would save the adapted head
        pytest.param(T.BertModel, BERT, ["query"], None, None, marks=pytest.mark.slow),
        pytest.param(
            T.ViTForImageClassification, VIT, ["q_proj"], None, None, marks=pytest.mark.slow
        ),  # PEFT's class for it would pass input_ids
    ],
)
def test_a_task_is_named_where_pefts_class_for_it_fits(make, shake, tmp_path, kind, config, targets, task, modules):
    torch.manual_seed(0)
    base = kind(config).eval()
    model = copy.deepcopy(base)
    shake(install(model, make("lora", find_targets(model, targets))), 0.1).export_peft(tmp_path, verify=False)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["task_type"], said["modules_to_save"]) == (task, modules)
    inputs = example_inputs(base)
    torch.testing.assert_close(run(in_peft(base, tmp_path), inputs), run(model, inputs), rtol=1e-5, atol=1e-5)
