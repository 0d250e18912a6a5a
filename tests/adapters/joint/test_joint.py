"""What tasks share and what is a task's own, on one layer in float64: outputs, gradients, counts, files."""

import pytest
import torch
from torch import nn

import lorax
from lorax.adapters.install import install
from lorax.adapters.joint.common import CommonAndOwn
from lorax.adapters.tying import tie
from lorax.api import attach, make_factors
from lorax.errors import UserError
from lorax.initializers.registry import build

M, N, R = 12, 20, 3
LORA = build("lora", shared={"rank": R})
X = torch.randn(8, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N, M)).double()


def lanes(kind, count=2, **fields):
    """Return a layer with one adapter a task, tied as a run ties them, every trained tensor moved from its start."""
    model = base()
    if kind == "mtl_lora":
        method = build(kind, shared={"rank": R}, own=fields)
        adapters = install(model, [make_factors(model, method.of_task(k)) for k in range(count)])
        tie(*adapters, tensors=method.shared_by_tasks)
    else:
        plans = [make_factors(model, LORA) for _ in range(count)]
        if kind == "common":
            term = make_factors(model, LORA, seed=1)
            plans = [{name: CommonAndOwn.of(name, term[name], plan[name]) for name in plan} for plan in plans]
        adapters = install(model, plans)
        tied = {"none": [], "A": ["A"], "common": ["common.B", "common.A"], "all": ["B", "A"]}[kind]
        tie(*adapters, tensors=tied)
    distinct = {id(value): value for each in adapters for value in each.parameters()}
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in distinct.values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return model, adapters, list(distinct.values())


@pytest.mark.parametrize("kind", ["none", "A", "common", "mtl_lora"])
def test_a_task_s_rows_give_no_gradient_to_what_is_another_s(kind):
    model, (first, second), _ = lanes(kind)
    (model(X)[:4] ** 2).sum().backward()
    mine = {id(value) for value in first.parameters()}
    others = [value for value in second.parameters() if id(value) not in mine]
    assert others and all(value.grad is None or not value.grad.any() for value in others)
    assert all(value.grad is not None and value.grad.any() for value in first.parameters())


def test_tasks_that_share_all_are_one_adapter_on_the_pooled_batch():
    model, adapters, (B, A) = lanes("all")
    losses = model(X).square().mean(1)
    ((losses[:4].mean() + losses[4:].mean()) / 2).backward()
    alone = base()
    single = attach(alone, "lora", rank=R)
    with torch.no_grad():
        for own, value in zip(single.parameters(), adapters[0].parameters(), strict=True):
            own.copy_(value)
    alone(X).square().mean(1).mean().backward()
    for own, tied in zip(single.parameters(), (B, A), strict=True):
        torch.testing.assert_close(tied.grad, own.grad, rtol=0, atol=1e-12)


def test_mtl_lora_with_one_up_projection_and_a_core_held_at_the_identity_is_a_shared_lora():
    model, mixed, _ = lanes("mtl_lora", ups=1)
    shared, tied, _ = lanes("all")
    with torch.no_grad():
        for each in mixed:
            each.layer_adapter("0").M.copy_(torch.eye(R)).requires_grad_(False)
        ours, theirs = mixed[0].layer_adapter("0"), tied[0].layer_adapter("0")
        theirs.B.copy_(ours.B[0])
        theirs.A.copy_(ours.A)
    torch.testing.assert_close(model(X), shared(X), rtol=0, atol=1e-12)
    model(X).square().sum().backward()
    shared(X).square().sum().backward()
    torch.testing.assert_close(ours.B.grad[0], theirs.B.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.A.grad, theirs.A.grad, rtol=1e-12, atol=1e-12)


COUNTS = {
    "none": lambda T: T * R * (M + N),
    "A": lambda T: R * N + T * R * M,
    "common": lambda T: (1 + T) * R * (M + N),
    "mtl_lora": lambda T: R * N + 3 * R * M + T * (R * R + 3),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_counts_are_those_of_the_closed_formulas(kind):
    for T in (1, 3):
        assert sum(value.numel() for value in lanes(kind, T)[2]) == COUNTS[kind](T)
    diagonal = build("mtl_lora", shared={"rank": R}, own={"core": "diagonal", "ups": 2})
    assert diagonal.count(M, N) == R * N + 2 * R * M + R + 2


@pytest.mark.parametrize("fields", [{}, {"core": "diagonal", "temperature": 0.5, "ups": 2}])
def test_mtl_lora_computes_its_equation_and_folds_into_one_product(fields):
    model, adapters, _ = lanes("mtl_lora", **fields)
    plain = base()
    for lane, each in enumerate(adapters):
        own = each.layer_adapter("0")
        p = torch.softmax(own.w / fields.get("temperature", 1.0), 0)
        core = own.M if own.M.ndim == 2 else own.M.diag()
        delta = 16 / R * sum(p[i] * own.B[i] for i in range(len(p))) @ core @ own.A
        rows = slice(4 * lane, 4 * lane + 4)
        torch.testing.assert_close(model(X)[rows], plain(X)[rows] + X[rows] @ delta.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(own.factors().update(), delta, rtol=0, atol=1e-12)
    w = [each.layer_adapter("0").w for each in adapters]
    assert w[0].shape == (fields.get("ups", 3),) and not torch.equal(*w)


@pytest.mark.parametrize("kind", ["A", "common", "mtl_lora"])
def test_a_task_s_adapter_is_saved_loaded_merged_and_exported_alone(kind, tmp_path):
    model, adapters, _ = lanes(kind)
    expected = model(X).detach()
    for lane, each in enumerate(adapters):
        each.save(tmp_path / f"{lane}", quiet=True)
        other = base()
        loaded = lorax.load(other, tmp_path / f"{lane}")
        rows = slice(4 * lane, 4 * lane + 4)
        torch.testing.assert_close(other(X)[rows], expected[rows], rtol=0, atol=1e-12)
        loaded.merge()
        torch.testing.assert_close(other(X)[rows], expected[rows], rtol=0, atol=1e-12)
        loaded.unmerge()
        factors = loaded.factors()["0"]
        torch.testing.assert_close(factors.update(), each.factors()["0"].update(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["pissa", "lora_xs", "vera"])
def test_common_needs_two_plain_terms(name):
    plans = make_factors(base(), build(name, shared={"rank": R}))
    with pytest.raises(UserError, match="layer 0: share=common adds two terms B A to the base"):
        CommonAndOwn.of("0", plans["0"], plans["0"])


@pytest.mark.parametrize(
    "fields, line",
    [({"ups": 0}, "ups=0: a whole number"), ({"core": "fill"}, "did you mean 'full'"),
     ({"temperature": 0.0}, "temperature=0.0: a finite number above 0"), ({"ups": True}, "ups=True")],
)  # fmt: skip
def test_bad_fields_of_mtl_lora_are_one_line(fields, line):
    with pytest.raises(UserError, match=line):
        build("mtl_lora", own=fields)
