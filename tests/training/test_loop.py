import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_training import encode
from torch import nn
from tqdm import tqdm

from lorax.adapters.fused import function
from lorax.api import attach
from lorax.errors import UserError
from lorax.forward import prefix_tree
from lorax.forward.batch import order
from lorax.forward.heads import install_heads
from lorax.training.loop import Run, TrainPlan, train
from lorax.training.schedule import factor


def run_of(loaded, task, init="lora", seed=0, lr=1e-2, **more):
    fields = {"rank": 2, "dropout": more.pop("dropout", 0.0)} if init != "none" else {}
    return Run(adapters=attach(loaded.model, init, seed=seed, **fields), data=encode(task, loaded, "train"),
                lr=lr, seed=seed, **more)  # fmt: skip


def tensors(adapters):
    return [value.detach().clone() for value in adapters.parameters()]


def test_the_loop_equals_a_plain_loop(toy, sums):
    """Same losses and weights as a plain loop with full logits, masked labels and AdamW, in fp64."""
    plan = TrainPlan(steps=5, batch_size=4, clip=0.5)
    loaded = toy(dtype="float64")
    ours = run_of(loaded, sums, seed=3, weight_decay=0.1)
    [outcome] = train(loaded, [ours], plan)

    other = toy(dtype="float64")
    plain = run_of(other, sums, seed=3)
    optimizer = torch.optim.AdamW(plain.adapters.parameters(), lr=1.0, weight_decay=0.1)
    for step, indices in enumerate(order(3, len(plain.data), 4, 5)):
        ids, labels = _masked([plain.data[index] for index in indices])
        logits = other.model(ids, attention_mask=(ids != 0).long()).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.adapters.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = rate = 1e-2 * factor(step, 5, "cosine", 0.1)
        optimizer.step()
        optimizer.zero_grad()
        row = outcome.curve[step]
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-8) and row["lr"] == rate
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    for mine, theirs in zip(ours.adapters.parameters(), plain.adapters.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-8)


def _masked(rows):
    width = max(len(row.ids) + len(row.labels) for row in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for number, row in enumerate(rows):
        whole = torch.tensor(row.ids + row.labels)
        ids[number, : len(whole)] = whole
        labels[number, len(row.ids) : len(whole)] = torch.tensor(row.labels)
    return ids, labels


def test_accumulation_splits_the_batch_and_changes_nothing(toy, sums):
    results = []
    for accumulation in (1, 3):
        loaded = toy(dtype="float64")
        run = run_of(loaded, sums)
        [outcome] = train(loaded, [run], TrainPlan(steps=4, batch_size=6, accumulation=accumulation))
        results.append(([row["loss"] for row in outcome.curve], tensors(run.adapters)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-8)
    for run, three in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(run, three, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("longest", [0, 512], ids=["cache", "tree"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_shared_beginning_is_computed_once_and_changes_nothing(toy, sums, monkeypatch, accumulation, longest):
    monkeypatch.setattr(prefix_tree, "LONGEST", longest)
    sums.system = "All of these begin alike."
    results, widths = [], []
    for share in (True, False):
        loaded = toy(dtype="float64")
        embed = loaded.model.get_input_embeddings()
        embed.register_forward_hook(lambda module, args, out: widths.append(out.shape[:2].numel()))
        run = run_of(loaded, sums)
        [outcome] = train(
            loaded, [run], TrainPlan(steps=4, batch_size=8, share_prefix=share, accumulation=accumulation)
        )
        results.append(([row["loss"] for row in outcome.curve], tensors(run.adapters)))
        widths.append(None)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-8)
    for shared, whole in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(shared, whole, rtol=1e-6, atol=1e-8)
    cut = widths.index(None)
    assert sum(widths[:cut]) < 0.6 * sum(widths[cut + 1 : -1])


@pytest.mark.parametrize("labels", [None, ("even", "odd")], ids=["causal", "classification"])
@pytest.mark.parametrize("init", ["lora", "pissa", "lora_xs"])
def test_padding_is_left_out_of_the_frozen_products_and_changes_nothing(toy, sums, parity, monkeypatch, labels, init):
    task, results, counted = parity if labels else sums, [], []
    task.train[:] = [  # uneven lengths
        replace(example, prompt="long " * (5 * (place % 4 == 0)) + example.prompt)
        for place, example in enumerate(task.train)
    ]
    product = function.on_rows
    monkeypatch.setattr(function, "on_rows", lambda x, live, own: counted.append(live is None) or product(x, live, own))
    for skip in (True, False):
        loaded = toy(labels=labels, dtype="float64")
        run = run_of(loaded, task, init, dropout=0.1)
        run.head = (install_heads(loaded, [0]) or [None])[0]
        [outcome] = train(loaded, [run], TrainPlan(steps=4, batch_size=8, skip_padding=skip))
        results.append(([row["loss"] for row in outcome.curve], tensors(run.adapters)))
        assert all(counted) is not skip
        counted.clear()
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-10)
    for left_out, whole in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(left_out, whole, rtol=1e-8, atol=1e-10)


def test_the_same_seed_gives_the_same_run_bit_for_bit(toy, sums):
    runs = []
    for seed in (1, 1, 2):
        loaded = toy()
        run = run_of(loaded, sums, seed=seed, dropout=0.2)
        torch.manual_seed(len(runs))  # the global generator has no part in it
        [outcome] = train(loaded, [run], TrainPlan(steps=3, batch_size=4))
        runs.append([row["loss"] for row in outcome.curve])
    assert runs[0] == runs[1] != runs[2]


def test_no_base_weight_moves_and_modes_come_back(toy, sums):
    loaded = toy()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    loaded.model.train()
    run = run_of(loaded, sums)
    train(loaded, [run], TrainPlan(steps=2, batch_size=4))
    assert loaded.model.training
    after = run.adapters.detach().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_loss_that_is_not_finite_ends_the_run_before_its_update(toy, sums):
    loaded = toy()
    run = run_of(loaded, sums, lr=1e30)
    [outcome] = train(loaded, [run], TrainPlan(steps=20, batch_size=4, clip=None, warmup=0.0))
    assert outcome.status == "diverged" and len(outcome.curve) < 20
    assert outcome.error.startswith(f"step {len(outcome.curve) - 1}: loss ")
    assert not math.isfinite(outcome.curve[-1]["loss"] + outcome.curve[-1]["grad_norm"])
    assert all(value.isfinite().all() for value in run.adapters.parameters())


def test_a_frozen_base_has_nothing_to_train(toy, sums):
    loaded = toy()
    [outcome] = train(loaded, [run_of(loaded, sums, "none")], TrainPlan(steps=3, batch_size=4))
    assert outcome.status == "finished" and outcome.curve == [] and outcome.step_ms is None


def test_the_head_has_a_rate_of_its_own(toy, parity):
    loaded = toy(labels=parity.labels)
    run = run_of(loaded, parity, lr=1e-2, head_lr=0.0)
    [run.head] = install_heads(loaded, [0])
    start, head = tensors(run.adapters), run.head.state_dict()
    train(loaded, [run], TrainPlan(steps=2, batch_size=4))
    assert any(not torch.equal(a, b) for a, b in zip(start, tensors(run.adapters), strict=True))
    assert all(torch.equal(head[name], value) for name, value in run.head.state_dict().items())


def test_full_fine_tuning_trains_by_the_same_loop(toy, sums):
    loaded = toy()
    run = run_of(loaded, sums, "full", lr=1e-3)
    [outcome] = train(loaded, [run], TrainPlan(steps=12, batch_size=8))
    assert outcome.curve[-1]["loss"] < outcome.curve[0]["loss"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_bases_train(toy, sums, dtype):
    loaded = toy(dtype=dtype)
    [outcome] = train(loaded, [run_of(loaded, sums)], TrainPlan(steps=12, batch_size=8))
    assert outcome.curve[-1]["loss"] < outcome.curve[0]["loss"]
    reference = toy()
    [exact] = train(reference, [run_of(reference, sums)], TrainPlan(steps=12, batch_size=8))
    assert outcome.curve[0]["grad_norm"] == pytest.approx(exact.curve[0]["grad_norm"], rel=0.05)


def test_autocast_stays_near_fp32(toy, sums):
    losses = []
    for dtype in (None, "bfloat16"):
        loaded = toy()
        [outcome] = train(loaded, [run_of(loaded, sums)], TrainPlan(steps=6, batch_size=8, autocast=dtype))
        losses.append([row["loss"] for row in outcome.curve])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.03)


def test_bad_shapes_are_refused(toy, sums):
    loaded = toy()
    run = run_of(loaded, sums)
    with pytest.raises(UserError, match="batch_size=5: not a multiple of accumulation=2"):
        train(loaded, [run], TrainPlan(steps=1, batch_size=5, accumulation=2))
    run.data = []
    with pytest.raises(UserError, match="training split is empty"):
        train(loaded, [run], TrainPlan(steps=1, batch_size=4))


def test_the_bar_shows_loss_only_when_asked(toy, sums, capsys, monkeypatch):
    # At once: a fast machine ends before the usual tenth of a second between two drawings.
    monkeypatch.setattr("lorax.training.loop.tqdm", partial(tqdm, mininterval=0))
    loaded = toy()
    run = run_of(loaded, sums)
    train(loaded, [run], TrainPlan(steps=2, batch_size=4))
    assert capsys.readouterr().err == ""
    train(loaded, [run], TrainPlan(steps=3, batch_size=4, progress=True))
    assert "loss=" in capsys.readouterr().err
