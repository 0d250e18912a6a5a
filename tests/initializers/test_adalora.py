"""AdaLoRA: PEFT's arithmetic over a whole run, the budget, the penalty, and what is left at the end."""

from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import nn

import lorax
from lorax.adapters.face import Step
from lorax.errors import UserError
from lorax.initializers.registry import build

T, RANK, START, ALPHA = 40, 2, 4, 6.0
FIELDS = {"init_rank": START, "warmup": 0.1, "hold": 0.2, "orth_weight": 0.5, "every": 1}


class Net(nn.Module):
    """Two layers whose output carries its loss, as transformers' models do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(6, 10, dtype=torch.float64)
        self.down = nn.Linear(10, 5, bias=False, dtype=torch.float64)

    def forward(self, x, y):
        return SimpleNamespace(loss=(self.down(torch.tanh(self.up(x))) - y).square().mean())


def batch(step):
    g = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=g, dtype=torch.float64), torch.randn(16, 5, generator=g, dtype=torch.float64)


def steps(adapters, rule, model, optimiser, count=T, start=0):
    """A run's steps as the training loop takes them, without its schedule."""
    for index in range(start, count):
        step = Step(index, T, torch.Generator())
        rule.before_forward(step, adapters)
        penalty = rule.penalty(adapters)
        loss = model(*batch(index)).loss
        (loss if penalty is None else loss + penalty).backward()
        rule.after_backward(step, adapters)
        optimiser.step()
        with torch.no_grad():
            rule.after_update(step, adapters)
        optimiser.zero_grad()
        yield index


def attached(alpha=ALPHA, **fields):
    method = build("adalora", shared={"rank": RANK, "alpha": alpha}, own=FIELDS | fields)
    model = Net()
    return method, model, lorax.attach(model, method)


@pytest.mark.parametrize("every", [1, 3])
def test_forty_steps_are_pefts(every):
    eta = ALPHA / (START + 1e-5)
    method, model, adapters = attached(alpha=eta * START, every=every)
    rule, optimiser = method.rule(), torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    reference = get_peft_model(
        Net(),
        AdaLoraConfig(
            init_r=START, target_r=RANK, tinit=4, tfinal=8, deltaT=every, total_step=T, lora_alpha=ALPHA,
            orth_reg_weight=0.5, target_modules=["up", "down"],
        ),
    )  # fmt: skip
    theirs = {}
    for name, factors in adapters.factors().items():
        layer = reference.base_model.model.get_submodule(name)
        theirs[name] = {"B": layer.lora_B["default"], "M": layer.lora_E["default"], "A": layer.lora_A["default"]}
        theirs[name]["B"].data.copy_(factors.B)
        theirs[name]["A"].data.copy_(factors.A)
    # in the order of our own parameters: AdamW treats each by itself
    other = torch.optim.AdamW([value for layer in theirs.values() for value in layer.values()], lr=1e-2)
    for index in steps(adapters, rule, model, optimiser):
        reference.base_model(*batch(index)).loss.backward()  # the plain PeftModel would leave the penalty out
        other.step()
        reference.base_model.update_and_allocate(index + 1)
        other.zero_grad()
        for name, value in adapters.named_parameters().items():
            layer, _, letter = name.rpartition(".")
            expected = theirs[layer][letter].reshape(value.shape)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
    assert sum(rule.report()["ranks"].values()) == RANK * 2


def test_the_budget_falls_from_the_start_to_the_end_and_masks_hold_it_exactly():
    method, model, adapters = attached()
    rule, optimiser = method.rule(), torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    live = []
    for _ in steps(adapters, rule, model, optimiser):
        live.append(sum(int(factors.M.values.count_nonzero()) for factors in adapters.factors().values()))
    budgets = [rule.budget(t, T, layers=2) for t in range(1, T + 1)]
    first, last = rule.phases(T)
    assert (first, last) == (4, 32) and budgets[first - 1] == START * 2 and budgets[last - 1] == RANK * 2
    assert budgets == sorted(budgets, reverse=True) and live[first:] == budgets[first:]
    masks = [rule.kept[name] for name in adapters.names()]
    assert all((f.M.values != 0).equal(mask) for f, mask in zip(adapters.factors().values(), masks, strict=True))
    report = rule.report()
    sizes = {name: sum(adapters.layer(name).weight.shape) + 1 for name in adapters.names()}
    assert report["live"] == sum(rank * sizes[name] for name, rank in report["ranks"].items())


def test_a_layer_that_no_gradient_reaches_is_cut_first():
    method, model, adapters = attached()
    idle = nn.Linear(10, 6, dtype=torch.float64)
    adapters.detach()
    model.idle = idle
    adapters = lorax.attach(model, method)
    rule, optimiser = method.rule(), torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    list(steps(adapters, rule, model, optimiser))
    assert rule.report()["ranks"]["idle"] == 0


def test_equal_ranks_never_mask():
    method, model, adapters = attached(init_rank=RANK)
    rule, optimiser = method.rule(), torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    list(steps(adapters, rule, model, optimiser))
    assert set(rule.report()["ranks"].values()) == {RANK}
    assert all(bool(factors.M.values.all()) for factors in adapters.factors().values())


def test_a_tie_is_cut_to_the_budget():
    method, _, adapters = attached()
    rule = method.rule()
    parameters = adapters.named_parameters()
    rule.importance = {name: torch.ones_like(value) for name, value in parameters.items()}
    rule.uncertainty = rule.importance
    rule._choose(parameters, 5)
    assert sum(int(kept.sum()) for kept in rule.kept.values()) == 5


@pytest.mark.parametrize("orth,power", [("mean", 1), ("paper", 2)])
def test_the_penalty_is_the_distance_from_orthonormality(orth, power):
    method, _, adapters = attached(orth=orth)
    norms = []
    for factors in adapters.factors().values():
        eye = torch.eye(START, dtype=torch.float64)
        norms += [(factors.B.T @ factors.B - eye).norm() ** power, (factors.A @ factors.A.T - eye).norm() ** power]
    expected = 0.5 * (sum(norms) / 4 if orth == "mean" else sum(norms))
    rule = method.rule()
    torch.testing.assert_close(rule.penalty(adapters), expected)
    with torch.no_grad():
        for name, value in adapters.named_parameters().items():
            if not name.endswith(".M"):
                value.copy_(nn.init.orthogonal_(torch.empty_like(value)))
    assert float(rule.penalty(adapters)) < 1e-12


def test_a_rule_resumes_from_its_state():
    method, model, adapters = attached(every=2)
    whole, optimiser = method.rule(), torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    list(steps(adapters, whole, model, optimiser))
    ends = [value.detach().clone() for value in adapters.parameters()]
    method, model, adapters = attached(every=2)
    first, optimiser = method.rule(), torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    list(steps(adapters, first, model, optimiser, count=17))
    second = method.rule()
    second.load_state_dict(first.state_dict())
    list(steps(adapters, second, model, optimiser, start=17))
    assert all(torch.equal(a, b) for a, b in zip(ends, adapters.parameters(), strict=True))


@pytest.mark.parametrize(
    "fields,line",
    [
        ({"init_rank": 1}, "init_rank=1: at least rank=2"),
        ({"warmup": 0.6, "hold": 0.4}, "together they must be below 1"),
        ({"beta1": 1.0}, "beta1=1.0: a number from 0 up to"),
        ({"every": 0}, "every=0: a positive whole number"),
        ({"orth": "sum"}, "orth=sum is unknown"),
        ({"orth_weight": -1}, "orth_weight=-1"),
    ],
)
def test_bad_input_is_one_clear_line(fields, line):
    with pytest.raises(UserError, match=line):
        build("adalora", shared={"rank": RANK}, own=FIELDS | fields)


def test_a_start_beyond_the_layer_is_named():
    with pytest.raises(UserError, match="layer x: init_rank=12 exceeds 10"):
        build("adalora", shared={"rank": 8}).check("x", 10, 20)


def test_masked_triplets_are_not_exported(tmp_path):
    import peft

    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    adapters = lorax.attach(model, "adalora", rank=2, init_rank=4)
    with torch.no_grad():
        for name, value in adapters.named_parameters().items():
            value.normal_()
            if name == "0.M":
                value[[0, 2, 3]] = 0
            elif name == "2.M":
                value.zero_()
    x = torch.randn(7, 6, dtype=torch.float64)
    want = model(x)
    report = adapters.export_peft(tmp_path, verify=False)
    assert report["rank"] == {"0": 1, "2": 4} and set(report["error"].values()) == {0.0}
    again = peft.PeftModel.from_pretrained(adapters.detach(), tmp_path)
    torch.testing.assert_close(again(x), want, rtol=1e-12, atol=1e-12)
