"""Less memory at the same result: checkpointed blocks, losses in chunks, micro-batches by tokens."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from small_training import encode
from zoo import ZOO

from lorax.adapters.install import find_targets, install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.forward.active import masks_from
from lorax.forward.blocks.checkpointing import blocks, checkpointed
from lorax.forward.heads import install_heads
from lorax.forward.logits import chunked_loss
from lorax.forward.modality import modality_of
from lorax.forward.recorders import Rerun
from lorax.initializers.registry import build
from lorax.probing.gradient import GradientSums
from lorax.running.device import resolve_placement
from lorax.training.gradients import Lanes
from lorax.training.loop import Run, TrainPlan, train
from lorax.training.pack_update import PackUpdate
from lorax.training.state import RunState

PLAN = TrainPlan(steps=20, batch_size=4, warmup=0.2)
SHORT = replace(PLAN, steps=2)
METHODS = ["lora", "lora"]


class Kept:
    """Counts the bytes that a forward pass keeps for its backward pass, each storage once, parameters left out."""

    def __init__(self, model):
        self.own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
        self.sizes = {}

    def pack(self, value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return value

    def of(self, loss):
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda value: value):
            value = loss()
        return sum(self.sizes.values()), value


def pack(loaded, task, methods, dropout=0.1):
    """One run of each method, with seeds, data, rates and dropouts of their own."""
    data = encode(task, loaded, "train")
    plans = [
        make_factors(loaded.model, build(name, shared={"rank": 2}, own={}), find_targets(loaded.model), seed=k)
        for k, name in enumerate(methods)
    ]
    handles = install(loaded.model, plans, dropout=[dropout * k for k in range(len(plans))])
    return [Run(adapters=handle, data=data[k:], lr=1e-2 / (k + 1), seed=k) for k, handle in enumerate(handles)]


def trained(toy, task, methods, recorder, plan, dtype):
    """The losses of every run, and its tensors at the end."""
    loaded = toy(dtype=dtype)
    runs = pack(loaded, task, methods)
    outcomes = train(loaded, runs, plan, recorder)
    return [[row["loss"] for row in each.curve] for each in outcomes], [run.adapters.state_dict() for run in runs]


def assert_same(ours, theirs, tolerance=0.0):
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine == (other if tolerance == 0 else pytest.approx(other, rel=tolerance))
    for mine, other in zip(ours[1], theirs[1], strict=True):
        for name, value in other.items():
            assert (mine[name] - value).norm() <= tolerance * (1 + value.norm()), name


def adapted(name, dropout=0.25):
    torch.manual_seed(0)
    model, batch = ZOO[name]()
    model.eval()
    targets = find_targets(model)
    factors = make_factors(model, build("lora", shared={"rank": 2}, own={}), targets)
    adapters = install(model, factors, dropout=dropout)
    for value in adapters.parameters():
        torch.nn.init.normal_(value, std=0.1)
    adapters.train(True)
    return model, batch, adapters


def cacheless(model):
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def steps(model, batch, adapters, count=2):
    """Losses, gradients of the first step, and values after some."""
    values = adapters.named_parameters()
    optimizer, first, losses = torch.optim.AdamW(values.values(), lr=0.1), None, []
    for step in range(count):
        optimizer.zero_grad()
        with masks_from([adapters], torch.tensor([7 + step])):
            losses.append(model(**cacheless(model), **batch).loss)
            losses[-1].backward()
        if first is None:
            first = {name: value.grad.clone() for name, value in values.items() if value.grad is not None}
        optimizer.step()
    return [loss.item() for loss in losses], first, {name: value.detach().clone() for name, value in values.items()}


MORE = ("gpt2", "bart", "mamba", "albert_cls", "gemma2", "swin", "mixtral", "modernbert_cls", "whisper")


@pytest.mark.parametrize(
    "name", ["llama_tied", "bert_cls", "t5", *(pytest.param(each, marks=pytest.mark.slow) for each in MORE)]
)
def test_checkpointed_steps_equal_plain_ones_bit_for_bit(name):
    dropout = 0.0 if name == "mixtral" else 0.25  # experts take none
    plain = steps(*adapted(name, dropout))
    model, batch, adapters = adapted(name, dropout)
    with checkpointed(model, [adapters]):
        again = steps(model, batch, adapters)
    assert plain[0] == again[0] and plain[1].keys() == again[1].keys() and plain[1]
    for mine, other in zip(again[1:], plain[1:], strict=True):
        assert all(torch.equal(mine[key], value) for key, value in other.items())
    assert not any("forward" in vars(model.get_submodule(block)) for block in blocks(model))


def test_every_block_is_one_that_is_computed_again():
    assert blocks(ZOO["llama_tied"]()[0]) == ["model.layers.0", "model.layers.1"]
    assert blocks(ZOO["t5"]()[0]) == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    assert blocks(ZOO["bert_cls"]()[0]) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert blocks(ZOO["mamba"]()[0]) == ["backbone.layers.0", "backbone.layers.1"]
    with pytest.raises(UserError, match="Sequential has no list of blocks"):
        blocks(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("recorded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_pack_s_checkpointed_steps_equal_its_plain_ones(toy, sums, recorded):
    """With dropout, padding left out, and a beginning that prompts share."""
    both = []
    for checkpointing in (False, True):
        plan = replace(SHORT, checkpointing=checkpointing)
        recorder = Rerun() if recorded else None
        methods = ["lora", "pissa", "svft"] if recorded else METHODS
        both.append(trained(toy, sums, methods, recorder, plan, dtype="float32"))
    assert_same(both[1], both[0])


def test_checkpointed_blocks_keep_a_fraction(toy):
    """16 x 512 tokens of a 135M model scaled down: 4 rows of 128 tokens, 8 layers of 64."""
    loaded, kept = toy(hidden=64, layers=8), []
    factors = make_factors(loaded.model, build("lora", shared={"rank": 2}, own={}), find_targets(loaded.model))
    [adapters] = install(loaded.model, [factors])
    ids = torch.randint(3, 200, (4, 128))

    def loss():
        return loaded.model(input_ids=ids, use_cache=False).logits.sum()

    for surrounding in (nullcontext(), checkpointed(loaded.model, [adapters])):
        with surrounding:
            size, value = Kept(loaded.model).of(loss)
            value.backward()
        kept.append(size)
    print(kept)
    assert kept[1] < kept[0] / 8


@pytest.mark.parametrize("recorded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_micro_batches_by_tokens_change_no_result(toy, sums, recorded):
    """K lanes, one of them with dropout: its masks are those of the whole batch."""
    plan = replace(SHORT, batch_size=8)
    recorder = Rerun() if recorded else None
    whole = trained(toy, sums, METHODS, recorder, plan, "float64")
    split = trained(toy, sums, METHODS, recorder, replace(plan, max_tokens=70), "float64")
    assert_same(split, whole, 1e-9)


def test_the_bound_on_tokens_decides_the_rows_of_a_micro_batch(toy, sums):
    loaded = toy()
    states = [RunState(run, replace(PLAN, batch_size=8, max_tokens=70), torch.device("cpu")) for run in
              pack(loaded, sums, ["lora", "lora"], dropout=0.0)]  # fmt: skip
    modality = modality_of(loaded)
    lanes = Lanes(modality, states)
    for step in range(20):
        parts = lanes.micro_batches(step)
        assert len({len(part.rows) for part in parts}) == 1
        assert all(modality.padded(part.rows) <= 70 for part in parts)
        assert sum(len(part.rows) for part in parts) == 16 and len(parts) > 1
    assert lanes.labels(lanes.micro_batches(3)) == [
        sum(len(row.labels) for row in state.micro_batches(3)[0]) for state in states
    ]


def test_an_example_above_the_bound_is_refused_in_one_line(toy, sums):
    loaded = toy()
    runs = pack(loaded, sums, ["lora"])
    with pytest.raises(UserError, match=r"train.max_tokens=5: an example of the training split has \d+ tokens"):
        train(loaded, runs, replace(SHORT, max_tokens=5))


@pytest.mark.slow
def test_losses_in_chunks_train_as_losses_at_once(toy, sums, monkeypatch):
    whole = trained(toy, sums, METHODS, None, SHORT, dtype="float32")
    monkeypatch.setattr(chunked_loss, "FROM", 1)
    monkeypatch.setattr(chunked_loss, "CHUNK", 3 * 261)
    assert_same(trained(toy, sums, METHODS, None, SHORT, dtype="float32"), whole, 1e-5)


def test_on_a_bf16_base_all_that_trains_is_fp32_and_gradients_come_one_at_a_time(toy, parity, monkeypatch):
    """No fp32 copy of the base: a probe's gradient leaves the model before the next layer's is there."""
    loaded = toy(labels=parity.labels, dtype="bfloat16")
    weights, together = list(loaded.model.parameters()), []
    collect = GradientSums._collect

    def counted(self, weight):
        together.append(sum(value.grad is not None for value in weights))
        collect(self, weight)

    monkeypatch.setattr(GradientSums, "_collect", counted)
    data = encode(parity, loaded, "train")
    batch = modality_of(loaded).collate(data[:4], share=False)
    batches = [dict(batch.inputs) | {"labels": torch.tensor([row.labels[0] for row in data[:4]])}]
    method = build("lora_ga", shared={"rank": 2}, own={})
    factors = make_factors(loaded.model, method, find_targets(loaded.model, head=loaded.head), batches=batches)
    [adapters], heads = install(loaded.model, [factors]), install_heads(loaded, [0])
    run = Run(adapters=adapters, data=data, lr=1e-2, head=heads[0])
    state = RunState(run, SHORT, torch.device("cpu"))
    update = PackUpdate([state])
    train(loaded, [run], SHORT)
    assert together and max(together) == 1
    trained = {value.dtype for value in [*adapters.parameters(), *heads[0].parameters()]}
    update.advance()
    buffers = {dtype for each in update.optimizers for dtype in (each.values.dtype, each.exp_avg.dtype)}
    update.release()
    assert trained == buffers == {torch.float32}
    assert {value.dtype for value in weights} == {torch.bfloat16}


def test_a_gpu_s_default_is_a_bf16_base(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    placement = resolve_placement("auto", "cuda")
    assert (placement.weights, placement.autocast, placement.dtype) == ("bfloat16", None, "bfloat16")
    assert resolve_placement("bf16-autocast", "cuda").weights == "float32"
    assert resolve_placement("float32", "cuda").autocast is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_placement("auto", "auto").weights == "float32"
