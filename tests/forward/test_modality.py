"""The modality is all that training, evaluation and calibration ask: shown with one that is no text."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.evaluation.evaluate import evaluate, summarise
from lorax.forward.active import active
from lorax.forward.batch import Batch
from lorax.forward.generation import CausalText
from lorax.forward.modality import modality_of
from lorax.initializers.registry import build
from lorax.models.modality import Modality
from lorax.models.registry import Loaded
from lorax.probing.gradient import layer_gradients
from lorax.running.gradient_batches import gradient_batches
from lorax.training.loop import Run, TrainPlan, train

tensor = partial(torch.tensor, dtype=torch.float64)


@dataclass(frozen=True)
class Point:
    vector: list[float]
    labels: list[float]
    example: SimpleNamespace

    def __len__(self):
        return 1


class Regression(Modality[Point]):
    """A vector in, a number out; the loss is the squared error."""

    task_kinds = ("regression",)
    loss_name = "squared error"

    def encode(self, task, split, shots=False):
        return [Point(example.prompt, [example.answer], example) for example in getattr(task, split)]

    def collate(self, rows, lanes=1, *, share=True, single_pass=False):
        vectors, numbers = tensor([row.vector for row in rows]), tensor([row.labels for row in rows])
        return Batch(inputs={"input": vectors}, targets=numbers, counts=[1] * len(rows)).to(self.device)

    def losses(self, output, batch):
        return (output - batch.targets).square().squeeze(1)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)).double().eval()
    return Loaded(model, None, "regression", "net", "", modality=Regression)


@pytest.fixture(scope="module")
def products():
    """A task: the product of the first two numbers of four."""
    draw = torch.Generator().manual_seed(1)
    vectors = torch.rand(96, 4, generator=draw).tolist()
    examples = [
        SimpleNamespace(id=str(number), prompt=vector, answer=vector[0] * vector[1])
        for number, vector in enumerate(vectors)
    ]

    def score(example, answer):
        return {"score": -abs(answer - example.answer)}

    return SimpleNamespace(name="products", train=examples[:64], test=examples[64:], shots=(), score=score)


ARMS = [("lora", 2, 0, 3e-2, 0.0), ("pissa", 1, 1, 1e-2, 0.1)]
PLAN = TrainPlan(steps=40, batch_size=8, accumulation=2)


def runs_of(loaded, task, arms):
    made = [
        make_factors(loaded.model, build(name, shared={"rank": rank}, own={}), targets=["0", "2"], seed=seed)
        for name, rank, seed, *_ in arms
    ]
    handles = install(loaded.model, made, dropout=[dropout for *_, dropout in arms])
    data = modality_of(loaded).encode(task, "train")
    return [
        Run(adapters=handle, data=data, lr=lr, seed=seed)
        for handle, (_, _, seed, lr, _) in zip(handles, arms, strict=True)
    ]


def test_a_regression_trains_and_is_scored_packed_as_single(products):
    loaded = network()
    [untrained] = evaluate(loaded, products, "test")
    packed = runs_of(loaded, products, ARMS)
    outcomes = train(loaded, packed, PLAN)
    scored = evaluate(loaded, products, "test", [run.adapters for run in packed], batch_size=10)
    for number, arm in enumerate(ARMS):
        other = network()
        [single] = runs_of(other, products, [arm])
        [outcome] = train(other, [single], PLAN)
        assert [row["loss"] for row in outcomes[number].curve] == pytest.approx(
            [row["loss"] for row in outcome.curve], rel=1e-8
        )
        for ours, theirs in zip(packed[number].adapters.parameters(), single.adapters.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)
        [items] = evaluate(other, products, "test", [single.adapters], batch_size=7)
        for key in ("completion", "loss", "score"):
            assert [item[key] for item in scored[number]] == pytest.approx([item[key] for item in items], abs=1e-9)
        assert summarise(items)["loss"] < 0.3 * summarise(untrained)["loss"]


def test_an_item_holds_the_answer_its_loss_and_its_score(products):
    loaded = network()
    [items] = evaluate(loaded, products, "test")
    assert [item["id"] for item in items] == [example.id for example in products.test]
    for item, example in zip(items, products.test, strict=True):
        answer = loaded.model(tensor(example.prompt)).item()
        assert item["completion"] == pytest.approx(answer, abs=1e-9) and item["answer"] == example.answer
        assert item["loss"] == pytest.approx((answer - example.answer) ** 2, abs=1e-9)
        assert item["score"] == pytest.approx(-abs(answer - example.answer), abs=1e-9)


def test_the_loss_of_a_step_is_the_mean_over_labels(products):
    loaded = network()
    [run] = runs_of(loaded, products, ARMS[:1])
    expected = [
        (loaded.model(tensor(row.vector)).item() - row.labels[0]) ** 2 for row in run.data
    ]  # step 0 is the base model
    [outcome] = train(loaded, [run], TrainPlan(steps=1, batch_size=len(run.data)))
    assert outcome.curve[0]["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-9)


def test_gradients_for_an_initialiser_come_from_the_same_loss(products):
    loaded = network()
    config = SimpleNamespace(calibration="train", seed=0, batch_size=8, train={"calibration_batches": 8})
    loss, batches = gradient_batches(products, loaded, config)
    assert "squared error" in loss.digest
    [gradient] = layer_gradients(loaded.model, {"2": loaded.model[2]}, loss, batches).values()
    vectors, numbers = (tensor([getattr(e, key) for e in products.train]) for key in ("prompt", "answer"))
    (loaded.model(vectors).squeeze(1) - numbers).square().mean().backward()
    assert torch.allclose(gradient, loaded.model[2].weight.grad, rtol=1e-6, atol=1e-9)


def test_a_model_says_its_modality_or_its_kind_of_text(toy):
    assert isinstance(modality_of(toy()), CausalText)
    assert isinstance(modality_of(network()), Regression)
    assert modality_of(network()).task_kinds == ("regression",)
    with pytest.raises(UserError, match="model=net: kind 'causl' is no kind of text; did you mean 'causal'"):
        modality_of(Loaded(nn.Identity(), None, "causl", "net", ""))


def test_adapters_that_share_no_pack_cannot_share_a_batch(products):
    strangers = [runs_of(network(), products, ARMS[:1])[0].adapters for _ in range(2)]
    with pytest.raises(UserError, match="2 adapters that were not installed together"), active(strangers):
        pass
