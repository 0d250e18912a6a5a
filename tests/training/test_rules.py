"""The contract of training rules and rates: packed, resumed, accumulated, clipped, for every method that has one.

Adapters in plain operations are held to the same."""

from dataclasses import replace

import pytest
import torch
from small_training import encode

from lorax.adapters.face import TrainingRule
from lorax.adapters.install import install
from lorax.api import attach, make_factors
from lorax.errors import UserError
from lorax.initializers.registry import build, get, names
from lorax.training.loop import Run, TrainPlan, train

PLAN = TrainPlan(steps=8, batch_size=4, warmup=0.2)
SMALL = {"layers": 1, "dtype": "float64"}  # seven adapted layers, of every shape there is
LINEAR = [name for name in names() if get(name).has_factors and get(name).adapts == "linear"]
RULED = [name for name in LINEAR if build(name).rule() or build(name).rates]
VARIANTS = [(name, {}) for name in RULED] + [
    ("dylora", {"variant": "frozen"}),
    ("dylora", {"variant": "strict", "ranks": [1, 3]}),
    ("adalora", {"orth": "paper", "every": 2}),
    ("adalora", {"orth_weight": 0.0, "init_rank": 3}),
    ("lora_fa", {"projected": True}),
    ("dora", {}),  # the last three have no rule: adapters that are no trained factors are held to the same
    ("vera", {}),
    ("svf", {"param": "sigmoid", "normalise": True}),
]
each_variant = pytest.mark.parametrize("name,fields", VARIANTS, ids=[f"{n}{i}" for i, (n, _) in enumerate(VARIANTS)])


def method(name, fields, rank=3):
    return build(name, shared={"rank": rank}, own=fields)


def run(adapters, initializer, data, seed, **more):
    rates, rule = initializer.rates, initializer.rule()
    return Run(adapters=adapters, data=data, lr=1e-2, seed=seed, rates=rates, rule=rule, **more)


def alone(toy, sums, initializer, seed=0, dropout=0.0, plan=PLAN, **more):
    loaded = toy(**SMALL)
    adapters = attach(loaded.model, initializer, seed=seed, dropout=dropout)
    [outcome] = train(loaded, [run(adapters, initializer, encode(sums, loaded, "train"), seed, **more)], plan)
    return adapters, outcome


def values(adapters):
    return {key: value.detach().clone() for key, value in adapters.state_dict().items()}


def assert_close(ours, theirs, tolerance=1e-10):
    for key, value in theirs.items():
        assert (ours[key] - value).norm() <= tolerance * (1 + value.norm()), key


def test_the_methods_with_rules_and_rates_are_found():
    assert {"lora_plus", "dylora", "adalora"} <= set(RULED) and "lora" not in RULED


@pytest.fixture(scope="module")
def beside(toy, fresh_sums):
    """The run that lies between two of each variant, alone."""
    return alone(toy, fresh_sums(), method("lora", {}), 1, 0.1)


@each_variant
def test_three_packed_runs_are_three_single_runs(toy, sums, beside, name, fields):
    """Another method beside it, other seeds, dropout: a rule acts on its own run and draws from it alone."""
    methods = [method(name, fields), method("lora", {}), method(name, fields, rank=2 if "ranks" not in fields else 3)]
    drops = [0.0, 0.1, 0.2]
    loaded = toy(**SMALL)
    plans = [make_factors(loaded.model, one, seed=seed) for seed, one in enumerate(methods)]
    handles = install(loaded.model, plans, dropout=drops)
    data = encode(sums, loaded, "train")
    runs = [run(handle, one, data, seed) for seed, (handle, one) in enumerate(zip(handles, methods, strict=True))]
    outcomes = train(loaded, runs, PLAN)
    for seed, (handle, one, outcome) in enumerate(zip(handles, methods, outcomes, strict=True)):
        adapters, expected = beside if seed == 1 else alone(toy, sums, one, seed, drops[seed])
        assert_close(values(handle), values(adapters))
        assert outcome.rule_report == expected.rule_report
        for ours, theirs in zip(outcome.curve, expected.curve, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-8)


@each_variant
def test_a_run_resumes_to_the_same_bits(toy, sums, tmp_path, name, fields):
    one, plan = method(name, fields), replace(PLAN, checkpoint_every=3)
    whole, expected = alone(toy, sums, one, dropout=0.1)

    def killed(row):
        if row["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alone(toy, sums, one, dropout=0.1, plan=plan, checkpoint=tmp_path / "c.pt", on_step=killed)
    resumed, outcome = alone(toy, sums, one, dropout=0.1, plan=plan, checkpoint=tmp_path / "c.pt")
    assert outcome.resumed == 3 and outcome.curve == expected.curve and outcome.rule_report == expected.rule_report
    assert all(torch.equal(value, values(whole)[key]) for key, value in values(resumed).items())


@each_variant
def test_micro_batches_change_nothing(toy, sums, name, fields):
    """A rule acts once a step, and a penalty counts once, however many micro-batches the step has."""
    one = method(name, fields)
    (whole, a), (parts, b) = (alone(toy, sums, one, plan=replace(PLAN, accumulation=n)) for n in (1, 2))
    assert_close(values(parts), values(whole), 1e-8)
    assert [row.keys() for row in a.curve] == [row.keys() for row in b.curve]


class _Pull(TrainingRule):
    """A penalty with a known gradient, and a record of what the rule saw."""

    def __init__(self, weight):
        self.weight, self.clipped = weight, []

    def penalty(self, adapters):
        return self.weight * sum(value.sum() for value in adapters.parameters())

    def after_update(self, step, adapters):
        self.clipped.append(float(torch.nn.utils.get_total_norm([value.grad for value in adapters.parameters()])))


def test_the_clip_includes_the_penalty_and_the_curve_shows_it_apart(toy, sums):
    def go(weight):
        loaded = toy(dtype="float64")
        adapters = attach(loaded.model, "lora", rank=2)
        rule = _Pull(weight)
        one = Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-3, rule=rule)
        [outcome] = train(loaded, [one], replace(PLAN, steps=1, clip=0.5))
        return adapters, rule, outcome.curve[0]

    adapters, rule, row = go(3.0)
    _, _, plain = go(0.0)
    start = 3.0 * sum(float(f.A.sum()) for f in attach(toy(dtype="float64").model, "lora", rank=2).factors().values())
    assert row["penalty"] == pytest.approx(start) and row["loss"] == plain["loss"]
    # the penalty's gradient is 3 on every number; the sum's norm lies within a triangle of both
    pull = 3.0 * adapters.count_trainable() ** 0.5
    assert abs(row["grad_norm"] - pull) <= plain["grad_norm"] and row["grad_norm"] > plain["grad_norm"]
    assert rule.clipped == [pytest.approx(0.5)]


class _Seen(TrainingRule):
    def __init__(self):
        self.calls = []

    def before_forward(self, step, adapters):
        gone = all(p.grad is None or not p.grad.any() for p in adapters.parameters())
        self.calls.append(("forward", step.index, gone))

    def after_backward(self, step, adapters):
        self.calls.append(("backward", step.index, all(p.grad is not None for p in adapters.parameters())))

    def after_update(self, step, adapters):
        self.calls.append(("update", step.index, all(p.grad is not None for p in adapters.parameters())))


def test_a_rule_is_called_once_a_step_and_in_order(toy, sums):
    loaded = toy()
    adapters, rule = attach(loaded.model, "lora", rank=2), _Seen()
    one = Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-3, rule=rule)
    train(loaded, [one], replace(PLAN, steps=2, accumulation=2))
    assert rule.calls == [(word, index, True) for index in (0, 1) for word in ("forward", "backward", "update")]


class _Finished(TrainingRule):
    def __init__(self):
        self.steps, self.ends = 0, 0

    def before_forward(self, step, adapters):
        self.steps += 1
        if self.steps == 3:
            raise KeyboardInterrupt

    def finish(self, adapters):
        self.ends += 1


def test_a_rule_leaves_the_adapters_in_order_however_training_ends(toy, sums):
    loaded = toy()
    adapters, rule = attach(loaded.model, "lora", rank=2), _Finished()
    one = Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-3, rule=rule)
    with pytest.raises(KeyboardInterrupt):
        train(loaded, [one], PLAN)
    assert (rule.steps, rule.ends) == (3, 1)
    # a diverged step is not completed: DyLoRA's rank is whole again all the same
    loaded = toy(dtype="float64")
    initializer = method("dylora", {"ranks": [1]})
    adapters = attach(loaded.model, initializer)
    wild = Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=float("inf"), rule=initializer.rule())
    [outcome] = train(loaded, [wild], replace(PLAN, clip=None))
    assert outcome.status == "diverged"
    assert all(bool((adapter.M == 1).all()) for adapter in adapters.layer_adapters().values())


@pytest.mark.parametrize("name", ["dylora"])
def test_draws_depend_on_the_seed_alone(toy, sums, name):
    """Whatever else a run draws (dropout, micro-batches), paired runs are paired."""
    seen = []
    for dropout, parts in ((0.0, 1), (0.1, 1), (0.1, 2)):
        loaded, initializer = toy(), method(name, {})
        adapters, rule, ranks = attach(loaded.model, initializer, dropout=dropout), initializer.rule(), []
        one = Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-3, rule=rule)
        one.on_step = lambda row, rule=rule, ranks=ranks: ranks.append(rule.b)
        train(loaded, [one], replace(PLAN, accumulation=parts))
        seen.append(ranks)
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0])) > 1


def test_rates_that_name_no_tensor_are_refused(toy, sums):
    loaded = toy()
    adapters = attach(loaded.model, "lora", rank=2)
    one = Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-3, rates={"b": 16.0})
    with pytest.raises(UserError, match="rates name b: choose from A, B"):
        train(loaded, [one], PLAN)


def test_a_penalty_that_is_not_finite_ends_its_run_alone(toy, sums):
    loaded = toy(**SMALL)
    initializer = method("lora", {})
    plans = [make_factors(loaded.model, initializer, seed=seed) for seed in (0, 1)]
    handles = install(loaded.model, plans)
    data = encode(sums, loaded, "train")
    runs = [Run(adapters=handle, data=data, lr=1e-2, seed=seed) for seed, handle in enumerate(handles)]
    runs[0].rule = _Pull(float("nan"))
    broken, healthy = train(loaded, runs, PLAN)
    assert broken.status == "diverged" and len(broken.curve) == 1 and "penalty nan" in broken.error
    adapters, expected = alone(toy, sums, initializer, seed=1)
    assert healthy.status == "finished" and len(healthy.curve) == PLAN.steps
    assert_close(values(handles[1]), values(adapters))
