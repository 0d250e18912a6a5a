"""Input second moments: against X held explicitly by a forward hook, whatever the padding, the layer or the layout."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_training import encode
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from lorax.adapters.install import find_targets
from lorax.api import attach
from lorax.errors import UserError
from lorax.initializers.base import Ranked
from lorax.initializers.registry import register
from lorax.models.registry import load
from lorax.probing.activations import layer_activations
from lorax.probing.calibration import Calibration
from lorax.probing.gradient import layer_gradients
from lorax.running.gradient_batches import gradient_batches
from lorax.tasks.base import Example


class Net(nn.Module):
    """A linear layer called twice, and a Conv1D."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.out, self.spare = nn.Linear(6, 6), Conv1D(3, 6), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.double()

    def forward(self, x):
        return self.out(self.drop(torch.tanh(self.twice(torch.tanh(self.twice(x))))))


def square(model, batch):
    return model(batch).square().mean()


def inputs_of(model, targets, run):
    """{layer: X}, every input of every layer, one a row."""
    rows = {name: [] for name in targets}
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: rows[name].append(args[0].flatten(0, -2)))
        for name, module in targets.items()
    ]
    with torch.no_grad():
        run(model)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


def llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=17, bos_token_id=0, eos_token_id=0, pad_token_id=0, **shape)
    return LlamaForCausalLM(config).double().eval()


def padded(rows, width, side="right"):
    """Rows of token ids as a batch with an attention mask."""
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, part], mask[number, part] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def test_every_call_of_a_layer_counts_and_the_model_is_as_before():
    model = Net().train()
    model.twice.weight.requires_grad_(False)
    batches = [torch.randn(size, 5, 6, dtype=torch.float64) for size in (2, 3)]
    targets = {"twice": model.twice, "out": model.out}
    S = layer_activations(model, targets, square, batches)
    assert model.training and model.drop.training and not model.twice.weight.requires_grad
    assert all(p.grad is None for p in model.parameters()) and model.out.weight.requires_grad
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.eval()
    X = inputs_of(model, targets, lambda model: [model(batch) for batch in batches])
    assert len(X["twice"]) == 2 * len(X["out"]) == 50
    for name in targets:
        torch.testing.assert_close(S[name], X[name].mT @ X[name] / len(X[name]), rtol=1e-12, atol=1e-15)
    again = layer_activations(model, targets, square, batches)
    assert all(torch.equal(again[name], S[name]) for name in targets)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_count(side):
    model = llama()
    targets = find_targets(model)
    rows = [[3, 5, 7], [2, 4, 6, 8, 10, 12], [9]]
    X = inputs_of(model, targets, lambda model: [model(input_ids=torch.tensor([row])) for row in rows])
    for batches in ([padded(rows, 6, side)], [padded(rows[:2], 9, side), padded(rows[2:], 4, side)]):
        S = layer_activations(model, targets, None, batches)
        for name in targets:
            torch.testing.assert_close(S[name], X[name].mT @ X[name] / 10, rtol=1e-5, atol=1e-7)  # RoPE, norms in fp32
    unmasked = layer_activations(model, targets, None, [padded(rows, 6) | {"attention_mask": None}])
    assert not torch.allclose(unmasked[name], S[name])


def test_pooled_inputs_count_once_a_row():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=17, **shape)).double().eval()
    targets = {"bert.pooler.dense": model.bert.pooler.dense, "query": model.bert.encoder.layer[0].attention.self.query}
    rows = [[3, 5, 7], [2, 4, 6, 8]]
    X = inputs_of(model, targets, lambda model: [model(input_ids=torch.tensor([row])) for row in rows])
    S = layer_activations(model, targets, None, [padded(rows, 7)])
    assert len(X["bert.pooler.dense"]) == 2 and len(X["query"]) == 7
    for name in targets:
        torch.testing.assert_close(S[name], X[name].mT @ X[name] / len(X[name]), rtol=1e-5, atol=1e-7)


def test_encoder_and_decoder_have_a_mask_each():
    torch.manual_seed(0)
    config = T5Config(vocab_size=17, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).double().eval()
    targets = find_targets(model)
    labels = torch.tensor([[5, 6, 1, -100], [7, 1, -100, -100]])
    start = torch.tensor([[0, 5, 6, 0], [0, 7, 0, 0]])
    batch = padded([[3, 5, 7], [2, 4, 6, 8, 10]], 6) | {"decoder_input_ids": start, "labels": labels}

    def single(model):
        for row, length, answer in ((0, 3, 3), (1, 5, 2)):
            model(input_ids=batch["input_ids"][row : row + 1, :length], decoder_input_ids=start[row : row + 1, :answer])

    X, S = inputs_of(model, targets, single), layer_activations(model, targets, None, [batch])
    for name in targets:
        torch.testing.assert_close(S[name], X[name].mT @ X[name] / len(X[name]), rtol=1e-5, atol=1e-7)
    narrow = batch | {key: batch[key][:, :4] for key in ("input_ids", "attention_mask")}
    with pytest.raises(UserError, match="two masks fit"):
        layer_activations(model, targets, None, [narrow])


def test_one_pass_gives_gradients_and_activations():
    model, passes = Net(), []

    def counted(model, batch):
        passes.append(torch.is_grad_enabled())
        return square(model, batch)

    targets, batches = {"twice": model.twice, "out": model.out}, [torch.randn(4, 6).double() for _ in range(3)]
    both = Calibration(model, targets, counted, batches, frozenset({"gradient", "activations"}))
    gradients = layer_gradients(model, targets, square, batches)
    moments = layer_activations(model, targets, square, batches)
    for name in targets:
        assert torch.equal(both.activations(name), moments[name]) and torch.equal(both.gradient(name), gradients[name])
    assert passes == [True] * 3
    only = Calibration(model, targets, counted, batches, frozenset({"activations"}))
    assert torch.equal(only.activations("out"), moments["out"]) and passes[3:] == [False] * 3
    with pytest.raises(UserError, match="layer out: gradient looked at but not announced"):
        only.gradient("out")


def test_sums_are_in_float32_under_autocast():
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(40, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        S = layer_activations(model, {"0": model[0]}, square, [x])["0"]
    assert S.dtype == torch.float32
    torch.testing.assert_close(S, x.mT @ x / 40)


def test_what_cannot_be_measured_is_named():
    model, x = Net(), torch.randn(2, 5, 6).double()
    with pytest.raises(UserError, match="no batch"):
        layer_activations(model, {"out": model.out}, square, [])
    with pytest.raises(UserError, match="no token reaches spare"):
        layer_activations(model, {"out": model.out, "spare": model.spare}, square, [x])
    with pytest.raises(UserError, match="batch 0: a mapping is needed"):
        layer_activations(model, {"out": model.out}, None, [x])
    with pytest.raises(UserError, match="layer out: its activations .* not finite"):
        infinite = [x * float("inf")]
        Calibration(model, {"out": model.out}, square, infinite, frozenset({"activations"})).activations("out")

    def masked(model, batch):
        return square(model, batch)

    masked.token_counts = lambda batch: [torch.ones(2, 7)]
    with pytest.raises(UserError, match=r"layer out: .* no mask fits \(the batch's: \(2, 7\)\)"):
        layer_activations(model, {"out": model.out}, masked, [x])
    whole = llama()
    with pytest.raises(UserError, match=r"batch 0: attention mask of shape \(1, 1, 2, 2\)"):
        batch = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 1, 2, 2)}
        layer_activations(whole, find_targets(whole), None, [batch])


@pytest.fixture
def eva(scratch_methods):
    """A method for this test alone: A = the top r eigenvectors of X^T X, B = 0."""

    @register("eva_like")
    @dataclass(frozen=True, kw_only=True)
    class EVALike(Ranked):
        needs = frozenset({"activations"})

        def __call__(self, probe):
            from lorax.adapters.core import Identity
            from lorax.adapters.factors import Factors

            A = torch.linalg.eigh(probe.activations()).eigenvectors[:, -self.rank :].flip(1).mT
            B = torch.zeros(probe.shape[0], self.rank, dtype=probe.dtype)
            return Factors(B=B, M=Identity(), A=A, eta=self.eta, trainable=frozenset({"A", "B"}))

    return EVALike


def aligned(A, X):
    """Whether the rows of A span the top right singular vectors of X."""
    V = torch.linalg.svd(X.double(), full_matrices=False).Vh[: len(A)]
    return torch.linalg.matrix_norm(A.double() - A.double() @ V.mT @ V, 2) < 1e-4


def test_a_method_that_looks_at_activations_is_attached(eva):
    model = llama()
    targets, rows = find_targets(model), [[3, 5, 7, 1, 2], [2, 4, 6, 8, 10, 12], [9, 3, 3, 11]]
    X = inputs_of(model, targets, lambda model: [model(input_ids=torch.tensor([row])) for row in rows])
    adapters = attach(model, init="eva_like", rank=3, batches=[padded(rows, 8)])
    factors = adapters.factors()
    assert set(factors) == set(targets) and all(aligned(one.A, X[name]) for name, one in factors.items())
    adapters.detach()
    with pytest.raises(UserError, match="this init looks at activations: give batches"):
        attach(model, init="eva_like", rank=3)


@pytest.mark.parametrize("share", [True, False])
def test_the_batches_of_a_run_count_every_examples_tokens_however_they_are_laid_out(share):
    texts = [f"{a}+{b}=" for a in range(3) for b in range(8)]
    examples = [Example(text, text, text[0] * int(text[2])) for text in texts]
    task = SimpleNamespace(
        name="sums", system="All of these begin alike.", shots=(), train=examples, scoring="generate", max_length=None
    )
    config = SimpleNamespace(calibration="train", seed=0, batch_size=8, train={"calibration_batches": 3})
    loaded = load({"name": "toy", "hidden": 32}, dtype="float64")
    targets = find_targets(loaded.model)
    loss, batches = gradient_batches(task, loaded, config, share=share)
    assert (len(batches) < 3) == share
    rows = [row.ids + row.labels[:-1] for row in encode(task, loaded, "train")]  # 3 x 8: all
    X = inputs_of(loaded.model, targets, lambda model: [model(input_ids=torch.tensor([row])) for row in rows])
    S = layer_activations(loaded.model, targets, loss, batches)
    for name in targets:
        assert len(X[name]) == sum(map(len, rows))
        torch.testing.assert_close(S[name], X[name].mT @ X[name] / len(X[name]), rtol=1e-5, atol=1e-6)


def test_a_run_of_such_a_method_gets_its_calibration_batches(eva, lorax):
    words = ["init=milora", "init.name=eva_like", "base=false", "rank=2"]
    assert lorax(*words) == 0
    assert lorax(*words, "calibration=heldout") == 0
    records = [json.loads(path.read_text()) for path in Path("results").rglob("*.json")]
    runs = [record for record in records if isinstance(record, dict) and record.get("status") == "finished"]
    assert {run["identity"]["calibration"][0] for run in runs} == {"train", "heldout"}
