"""The load-balance penalty: its formula by hand and in transformers, its gradient, and no part of padding in it."""

from dataclasses import replace

import pytest
import torch
from small_training import encode
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import lorax
from lorax.adapters.face import Step
from lorax.adapters.gated.balance import Balance, balance_loss
from lorax.errors import UserError
from lorax.forward.active import set_token_counts
from lorax.forward.modality import modality_of
from lorax.models.modality import Batch
from lorax.training.loop import Run, TrainPlan, train
from lorax.training.objective import Reinforce, Rewarded
from lorax.training.state import RunState

pytestmark = pytest.mark.filterwarnings("ignore:.*acts while it trains")
STEP = Step(0, 1, torch.Generator())


def test_the_formula_on_four_tokens_by_hand():
    """Two of three experts a token: (0, 1), (1, 2), (0, 2), (1, 0); the sums are in the lines below."""
    rows = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.1, 0.4], [0.35, 0.4, 0.25]]
    weights = torch.tensor(rows, dtype=torch.float64)
    by_hand = 3 * (3 / 4 * 1.65 / 4 + 3 / 4 * 1.3 / 4 + 2 / 4 * 1.05 / 4)
    assert float(balance_loss(weights, 2)) == pytest.approx(by_hand, abs=1e-12)
    without_the_last = 3 * (2 / 3 * 1.3 / 3 + 2 / 3 * 0.9 / 3 + 2 / 3 * 0.8 / 3)
    assert float(balance_loss(weights, 2, torch.tensor([1, 1, 1, 0]))) == pytest.approx(without_the_last, abs=1e-12)
    assert float(balance_loss(torch.full((8, 4), 0.25), 4)) == pytest.approx(4.0)  # all alike: k


@pytest.mark.parametrize("k", [1, 2])
def test_it_is_mixtrals_of_transformers_with_its_gradient(k):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3 * 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    theirs = load_balancing_loss_func((logits,), 4, k, mask)
    ours = balance_loss(logits.softmax(-1).view(3, 5, 4), k, mask)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-6, atol=0)  # theirs counts in float32
    (a,), (b,) = (torch.autograd.grad(value, logits) for value in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    unpadded = load_balancing_loss_func((logits,), 4, k, None)
    torch.testing.assert_close(balance_loss(logits.softmax(-1), k).float(), unpadded.float(), rtol=1e-6, atol=0)


class Two(nn.Module):
    """A gated layer above another: the upper one's penalty reaches the lower one's experts."""

    def __init__(self, checkpointed=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 5)
        self.checkpointed = checkpointed
        self.double()

    def forward(self, x):
        def whole(x):
            return self.b(torch.tanh(self.a(x)))

        return checkpoint(whole, x, use_reentrant=False) if self.checkpointed else whole(x)


def gated(model, **fields):
    adapters = lorax.attach(model, "molora", rank=2, top_k=2, balance=0.5, **fields)
    with torch.no_grad():
        for k, parameter in enumerate(adapters.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))
    return adapters


def x_of(rows=3, tokens=4):
    return torch.randn(rows, tokens, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def test_the_rule_is_the_mean_over_layers_and_reaches_the_layers_below():
    model, x = Two(), x_of()
    adapters = gated(model)
    adapters.rule.before_forward(STEP, adapters)
    model(x)
    penalty = adapters.rule.penalty(adapters)
    below, above = adapters.layer_adapter("a"), adapters.layer_adapter("b")
    hidden = torch.tanh(model.a(x))
    weights = [(x @ below.router.T).softmax(-1), (hidden @ above.router.T).softmax(-1)]
    want = 0.5 * sum(balance_loss(each, 2) for each in weights) / 2
    assert float(penalty.detach()) == pytest.approx(float(want.detach()), rel=1e-12)
    leaves = [below.B, below.A, below.router, above.router]
    for mine, other in zip(torch.autograd.grad(penalty, leaves), torch.autograd.grad(want, leaves), strict=True):
        assert float(mine.abs().sum()) > 0
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-13)
    adapters.rule.finish(adapters)
    assert adapters.rule.report() == {"balance": pytest.approx(float(want.detach()) / 0.5)} and above.noted is None
    assert adapters.rule.penalty(adapters) is None  # nothing went through the layers


def test_gradient_checkpointing_changes_nothing():
    found = []
    for checkpointed in (False, True):
        model = Two(checkpointed)
        adapters = gated(model)
        adapters.rule.before_forward(STEP, adapters)
        y = model(x_of().requires_grad_())
        (y.square().mean() + adapters.rule.penalty(adapters)).backward()
        assert not adapters.layer_adapter("a").noted
        found.append([parameter.grad for parameter in adapters.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def batch(tokens, lengths):
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    inputs = {"input_ids": torch.zeros(len(lengths), tokens, dtype=torch.int64), "attention_mask": mask}
    return Batch(inputs, torch.zeros(len(lengths)), [1] * len(lengths))


def test_padding_counts_nothing_however_much_of_it_there_is():
    model, x = Two(), x_of(3, 6)
    adapters = gated(model)
    values = []
    for tokens in (4, 6):
        filled = x[:, :tokens].clone()
        filled[0, 2:] = tokens  # what stands at padded places differs
        adapters.rule.before_forward(STEP, adapters)
        model(filled)
        set_token_counts([adapters], batch(tokens, [2, 4, 1]))
        values.append(float(adapters.rule.penalty(adapters).detach()))
    set_token_counts([adapters], None)
    adapters.rule.before_forward(STEP, adapters)
    model(torch.cat([x[0, :2] * 1.0, x[1, :4], x[2, :1]]))  # seven tokens and no padding
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[0] == pytest.approx(float(adapters.rule.penalty(adapters).detach()), rel=1e-12)


def test_an_encoder_decoder_is_refused_in_one_line():
    adapters = gated(Two())
    two = batch(4, [2, 4])
    both = replace(two, inputs=two.inputs | {"decoder_input_ids": torch.zeros(2, 3, dtype=torch.int64)},
                   positions=torch.tensor([0, 3]))  # fmt: skip
    with pytest.raises(UserError, match="init.balance: an encoder-decoder has two grids"):
        set_token_counts([adapters], both)


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_adds_the_penalty_of_each_micro_batch(toy, sums, parts):
    """One step's gradient norm and curve are those of loss + penalty written out; with micro-batches, of their mean."""
    loaded = toy(dtype="float64")
    adapters = lorax.attach(loaded.model, "molora", rank=2, balance=0.5, experts=3)
    data = encode(sums, loaded, "train")
    plan = TrainPlan(steps=1, batch_size=4, accumulation=parts, clip=None)
    modality, seen = modality_of(loaded), []

    class Watched(Balance):
        def penalty(self, adapters, seen=seen):
            value = super().penalty(adapters)
            seen.append(float(value.detach()))
            return value

    run = Run(adapters=adapters, data=data, lr=0.0, rule=Watched(0.5))
    rows = RunState(run, plan, torch.device("cpu")).micro_batches()
    labels = sum(len(row.labels) for part in rows for row in part)
    total, penalties = 0.0, []
    for part in rows:
        adapters.rule.before_forward(STEP, adapters)
        made = modality.collate(part, share=False)
        losses = modality.losses(modality.forward(made), made)
        set_token_counts([adapters], made)
        penalties.append(adapters.rule.penalty(adapters))
        set_token_counts([adapters], None)
        total = total + losses.sum() / labels + penalties[-1] / parts
    adapters.rule.finish(adapters)
    gradients = torch.autograd.grad(total, adapters.parameters())
    [outcome] = train(loaded, [run], plan)
    assert seen == pytest.approx([float(each.detach()) for each in penalties], rel=1e-12) and len(seen) == parts
    row = outcome.curve[0]
    assert row["penalty"] == pytest.approx(sum(seen) / parts, rel=1e-12)
    assert row["loss"] + row["penalty"] == pytest.approx(float(total.detach()), rel=1e-12)
    assert row["grad_norm"] == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-10)


def test_rewards_refuse_a_penalty_that_they_would_leave_out(toy, sums):
    loaded = toy()
    adapters = lorax.attach(loaded.model, "molora", rank=2, balance=0.1)
    objective = Rewarded(sums, Reinforce(samples=2))
    run = Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-3, rule=adapters.rule, objective=objective)
    with pytest.raises(UserError, match="objective=reinforce adds no penalty of a router's balance"):
        train(loaded, [run], TrainPlan(steps=1, batch_size=2))


@pytest.mark.slow
def test_it_balances(toy, sums):
    """A strong penalty brings experts that were used unlike each other nearer to equal use."""

    def last(weight):
        loaded = toy()
        adapters = lorax.attach(loaded.model, "molora", rank=2, experts=3, top_k=2, balance=weight)
        with torch.no_grad():
            for adapter in adapters.layer_adapters().values():
                adapter.router[0] += 0.5
        run = Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-2, rule=adapters.rule)
        [outcome] = train(loaded, [run], TrainPlan(steps=15, batch_size=4))
        return outcome.rule_report["balance"]

    assert last(3.0) < last(1e-9) - 0.02
