"""Training on rewards: the written-out gradient, the expectation over all completions, packs, resumed runs."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_training import encode
from torch.nn.functional import log_softmax
from transformers import LlamaConfig, LlamaForCausalLM

from lorax.adapters.install import install
from lorax.api import attach, make_factors
from lorax.errors import UserError
from lorax.forward.active import active
from lorax.forward.batch import Encoded
from lorax.forward.modality import modality_of
from lorax.initializers.registry import build
from lorax.models.registry import Loaded
from lorax.training.loop import Run, TrainPlan, train
from lorax.training.objective import Reinforce, Rewarded
from lorax.training.pack_update import PackUpdate
from lorax.training.reinforce import RewardedSteps
from lorax.training.state import RunState

PLAN = TrainPlan(steps=4, batch_size=2, warmup=0.0)


@pytest.fixture
def graded(sums):
    """Sums whose completions are graded by their length, so that rewards of random texts differ."""
    sums.max_new_tokens = 4
    sums.score = lambda example, text: {"score": (len(text) + len(example.prompt)) % 3 / 2}
    return sums


def moved(adapters, seed=0):
    """Adapters away from their start, so that every tensor has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapters.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return adapters


def one_step(loaded, run, plan):
    """Return the gradients of a first step as the loop makes them, its loss and its completions."""
    modality, state = modality_of(loaded), RunState(run, plan, torch.device("cpu"))
    updates, passes = PackUpdate([state]), RewardedSteps(modality, run.objective)
    with modality.open(), active([run.adapters]):
        rollouts = passes.rollouts([state])[0]
        updates.advance()
        updates.start()
        with updates.held():
            [loss] = passes.gradients([state]).tolist()
        updates.complete()
    gradients = [value.grad.clone() for value in run.adapters.parameters()]
    updates.release()
    for value in run.adapters.parameters():
        value.grad = None
    return gradients, loss, rollouts


def written_out(loaded, adapters, rollouts, settings):
    """Return the loss, from whole plain forward passes and sums over tokens."""
    total, count = 0.0, 0
    for prompt in rollouts:
        rewards = [each.score if settings.reward == "score" else 2 * (each.score == 1) - 1 for each in prompt]
        for j, each in enumerate(prompt):
            others = [reward for i, reward in enumerate(rewards) if i != j]
            baseline = sum(others) / len(others) if settings.baseline == "mean" else 0.0
            ids, start = torch.tensor([each.row.ids + each.row.labels]), len(each.row.ids) - 1
            p = log_softmax(loaded.model(ids).logits[0, start:-1] / (settings.temperature or 1), -1)
            with adapters.disabled(), torch.no_grad():
                q = log_softmax(loaded.model(ids).logits[0, start:-1] / (settings.temperature or 1), -1)
            said = p.gather(1, torch.tensor(each.row.labels)[:, None]).sum()
            total = total - (rewards[j] - baseline) * said + settings.kl * (p.exp() * (p - q)).sum()
            count += 1
    return total / count


@pytest.mark.parametrize(
    "settings",
    [
        Reinforce(samples=3, reward="score", temperature=0.7),
        Reinforce(samples=2, baseline="mean", kl=0.3),
        Reinforce(samples=1, temperature=0.0, kl=2.0),
    ],
    ids=["score", "mean+kl", "greedy+kl"],
)
def test_the_gradient_is_that_of_the_written_out_loss(toy, graded, settings):
    loaded = toy(dtype="float64", hidden=16, layers=1)
    adapters = moved(attach(loaded.model, "svf" if settings.kl else "lora", **({} if settings.kl else {"rank": 2})))
    run = Run(adapters=adapters, data=encode(graded, loaded, "train"), lr=1e-2, objective=Rewarded(graded, settings))
    gradients, loss, rollouts = one_step(loaded, run, replace(PLAN, batch_size=3))
    assert len({each.score for prompt in rollouts for each in prompt}) > 1
    expected = written_out(loaded, adapters, rollouts, settings)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-12)
    for mine, value in zip(gradients, adapters.parameters(), strict=True):
        assert value.grad.norm() > 1e-6 and (mine - value.grad).norm() <= 1e-12 * (1 + value.grad.norm())


def two_tokens():
    """A model of two tokens, 0 and the end token 1; completions of at most three, scored by their length."""
    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "bos_token_id": None, "eos_token_id": 1, "attn_implementation": "sdpa"}  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2, max_position_embeddings=16, **size)).double().eval()
    text = SimpleNamespace(
        decode=lambda tokens, skip_special_tokens: "x" * len(tokens),
        eos_token_id=1,
        pad_token_id=1,
        model_max_length=16,
    )
    model.generation_config.eos_token_id = 1
    for name in [name for name, _ in model.named_modules()]:  # Llama's own norm computes in fp32
        if "norm" in name:
            model.set_submodule(name, torch.nn.RMSNorm(8, 1e-6, dtype=torch.float64))
    task = SimpleNamespace(
        name="length", max_new_tokens=3, score=lambda example, text: {"score": [0.1, 1.0, 0.3, 0.7][len(text)]}
    )
    return Loaded(model, text, "causal", "two", "-"), task


COMPLETIONS = [[1], [0, 1], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("settings", [
    Reinforce(samples=1, reward="score"), Reinforce(samples=1, temperature=0.6),
    pytest.param(Reinforce(samples=2, reward="score", baseline="mean"), marks=pytest.mark.slow),
])  # fmt: skip
def test_the_mean_gradient_over_all_completions_is_that_of_the_expected_reward(monkeypatch, settings):
    """sum_y p(y) gradient(y) = gradient of -sum_y p(y) r(y), the completions drawn by numbers that lead to each y."""
    loaded, task = two_tokens()
    adapters = moved(attach(loaded.model, "lora", rank=1))
    row = Encoded([0, 1, 0], [1], None)
    run = Run(adapters=adapters, data=[row], lr=1.0, objective=Rewarded(task, settings))
    chance = []
    for tokens in COMPLETIONS:
        p = log_softmax(loaded.model(torch.tensor([row.ids + tokens])).logits[0, 2:-1] / settings.temperature, -1)
        chance.append(p.gather(1, torch.tensor(tokens)[:, None]).sum().exp())
    assert sum(chance).item() == pytest.approx(1, abs=1e-12)
    rewards = [task.score(None, "x" * tokens.count(0))["score"] for tokens in COMPLETIONS]
    rewards = [2 * (reward == 1) - 1 for reward in rewards] if settings.reward == "sign" else rewards
    (-sum(p * r for p, r in zip(chance, rewards, strict=True))).backward()
    wanted = [value.grad.clone() for value in adapters.parameters()]
    for value in adapters.parameters():
        value.grad = None

    total = [torch.zeros_like(value) for value in wanted]
    for pair in itertools.product(range(4), repeat=settings.samples):
        numbers = [[[1 - 1e-12 if token else 0.0 for token in [*COMPLETIONS[y], 0, 0]] for y in pair]]
        monkeypatch.setattr(RewardedSteps, "_prompts", lambda self, state, numbers=numbers: ([row], numbers))
        gradients, _, [rollouts] = one_step(loaded, run, TrainPlan(steps=1, batch_size=1))
        assert [each.row.labels for each in rollouts] == [COMPLETIONS[y] for y in pair]
        weight = torch.stack([chance[y] for y in pair]).prod().detach()
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += weight * gradient
    for mine, value in zip(total, wanted, strict=True):
        assert value.norm() > 1e-6 and (mine - value).norm() <= 1e-10 * value.norm()


def test_a_constant_reward_with_a_mean_baseline_moves_nothing(toy, graded):
    loaded = toy(hidden=16, layers=1)
    adapters = moved(attach(loaded.model, "lora", rank=2))
    graded.score = lambda example, text: {"score": 1}
    before = [value.detach().clone() for value in adapters.parameters()]
    objective = Rewarded(graded, Reinforce(samples=2, baseline="mean"))
    run = Run(adapters=adapters, data=encode(graded, loaded, "train"), lr=1e-2, objective=objective)
    [outcome] = train(loaded, [run], replace(PLAN, steps=2))
    assert all(row["grad_norm"] == 0 and row["score"] == 1 for row in outcome.curve)
    assert all(map(torch.equal, before, adapters.parameters()))


def test_at_the_base_the_divergence_is_zero_and_has_no_gradient(toy, graded):
    loaded = toy(dtype="float64", hidden=16, layers=1)
    graded.score = lambda example, text: {"score": 1}
    run = Run(adapters=attach(loaded.model, "svf"), data=encode(graded, loaded, "train"), lr=1e-2,
              objective=Rewarded(graded, Reinforce(samples=2, baseline="mean", kl=5.0)))  # fmt: skip
    gradients, loss, _ = one_step(loaded, run, PLAN)
    assert abs(loss) < 1e-12 and all(value.norm() < 1e-12 for value in gradients)


ARMS = [("lora", {"rank": 2}, 0), ("svf", {}, 1), ("lora", {"rank": 3}, 2)]


def runs_of(loaded, task, arms, **more):
    plans = [make_factors(loaded.model, build(name, shared=shared, own={}), seed=seed) for name, shared, seed in arms]
    handles = install(loaded.model, plans)
    objective = Rewarded(task, Reinforce(samples=2, reward="score", baseline="mean", kl=0.1))
    data = encode(task, loaded, "train")
    return [
        Run(adapters=handle, data=data, lr=1e-2, seed=seed, objective=objective, **more)
        for handle, (_, _, seed) in zip(handles, arms, strict=True)
    ]


def test_packed_runs_draw_and_learn_what_they_do_alone(toy, graded):
    """Three lanes, one of them over after two steps."""
    loaded = toy(hidden=16, layers=1)
    runs = runs_of(loaded, graded, ARMS)
    plan = replace(PLAN, steps=3)
    runs[2].plan = replace(PLAN, steps=2)
    outcomes = train(loaded, runs, plan)
    for run, arm, outcome in zip(runs, ARMS, outcomes, strict=True):
        other = toy(hidden=16, layers=1)
        [single] = runs_of(other, graded, [arm])
        single.plan = run.plan
        [alone] = train(other, [single], plan)
        for ours, theirs in zip(outcome.curve, alone.curve, strict=True):
            assert (ours["score"], ours["tokens"]) == (theirs["score"], theirs["tokens"])
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6)
        for mine, value in zip(run.adapters.parameters(), single.adapters.parameters(), strict=True):
            assert (mine - value).norm() <= 1e-3 * value.norm()


def test_seed_and_step_decide_what_is_drawn(toy, graded):
    loaded = toy(hidden=16, layers=1)
    [run] = runs_of(loaded, graded, ARMS[:1])
    modality, drawn = modality_of(loaded), []
    for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1)):
        state = RunState(replace(run, seed=seed), PLAN, torch.device("cpu"))
        state.order, state.step = [[0, 1]] * 2, step
        with modality.open(), active([run.adapters]):
            [prompts] = RewardedSteps(modality, run.objective).rollouts([state])
        drawn.append([each.row.labels for prompt in prompts for each in prompt])
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2] and drawn[0] != drawn[3]
    assert len({*map(tuple, drawn[0])}) == 4


def test_a_run_that_was_killed_goes_on_to_the_same_bits(toy, graded, tmp_path):
    plan = replace(PLAN, steps=3, checkpoint_every=2)

    def result(path, on_step=None):
        loaded = toy(hidden=16, layers=1)
        [run] = runs_of(loaded, graded, ARMS[:1], checkpoint=path, on_step=on_step)
        [outcome] = train(loaded, [run], plan)
        return outcome, [value.detach().clone() for value in run.adapters.parameters()]

    def killed(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    whole, expected = result(None)
    with pytest.raises(KeyboardInterrupt):
        result(tmp_path / "state.pt", killed)
    resumed, found = result(tmp_path / "state.pt")
    assert resumed.resumed == 2 and resumed.curve == whole.curve
    assert all(map(torch.equal, found, expected))


@pytest.mark.slow
def test_accumulation_splits_the_prompts_and_changes_nothing(toy, graded):
    results = []
    for accumulation in (1, 2):
        loaded = toy(dtype="float64", hidden=16, layers=1)
        [run] = runs_of(loaded, graded, ARMS[:1])
        [outcome] = train(loaded, [run], TrainPlan(steps=2, batch_size=4, accumulation=accumulation))
        results.append([(row["loss"], row["score"], row["tokens"]) for row in outcome.curve])
    assert torch.tensor(results[0]).allclose(torch.tensor(results[1]), rtol=1e-8)


def test_a_bound_on_tokens_splits_the_completions_and_changes_nothing(toy, graded, monkeypatch):
    found, sizes = [], []
    for bound in (None, 60):
        loaded = toy(dtype="float64", hidden=16, layers=1)
        [run] = runs_of(loaded, graded, ARMS[:1])
        padded, collate = [], type(modality_of(loaded)).collate
        with monkeypatch.context() as patch:

            def seen(self, rows, *more, padded=padded, collate=collate, **named):
                padded.append(self.padded(rows))
                return collate(self, rows, *more, **named)

            patch.setattr(type(modality_of(loaded)), "collate", seen)
            gradients, loss, _ = one_step(loaded, run, replace(PLAN, batch_size=4, max_tokens=bound))
        found.append([torch.tensor(loss, dtype=torch.float64), *gradients])
        sizes.append(padded)
    assert all(one.allclose(two, rtol=1e-8) for one, two in zip(*found, strict=True))
    assert len(sizes[0]) == 1 < len(sizes[1]) and max(sizes[1]) <= 60 < sizes[0][0]


@pytest.mark.slow
def test_full_fine_tuning_and_bottleneck_adapters_learn_from_rewards_too(toy, graded):
    for init, fields in (("full", {}), ("pfeiffer", {"rank": 2})):
        loaded = toy(hidden=16, layers=1)
        adapters = attach(loaded.model, init, **fields)
        run = Run(adapters=adapters, data=encode(graded, loaded, "train"), lr=1e-2,
                  objective=Rewarded(graded, Reinforce(samples=2, kl=0.1)))  # fmt: skip
        before = [value.detach().clone() for value in adapters.parameters()]
        [outcome] = train(loaded, [run], replace(PLAN, steps=1))
        assert outcome.status == "finished" and outcome.curve[0]["grad_norm"] > 0, init
        assert not all(map(torch.equal, before, adapters.parameters())), init


def test_what_cannot_be_trained_on_rewards_is_refused(toy, graded, parity):
    loaded = toy(labels=["a", "b"])
    objective = Rewarded(parity, Reinforce())
    run = Run(adapters=attach(loaded.model, "lora", rank=2), data=encode(parity, loaded, "train"), lr=1e-2,
              objective=objective)  # fmt: skip
    with pytest.raises(UserError, match="no answers that a model generates"):
        train(loaded, [run], PLAN)
    loaded = toy()
    run = Run(adapters=attach(loaded.model, "lora", rank=2, dropout=0.1), data=encode(graded, loaded, "train"),
              lr=1e-2, objective=Rewarded(graded, Reinforce()))  # fmt: skip
    with pytest.raises(UserError, match="dropout=0"):
        train(loaded, [run], PLAN)
    two = runs_of(toy(), graded, ARMS[:2])
    two[1].objective = None
    with pytest.raises(UserError, match="differ in their objective"):
        train(toy(), two, PLAN)
