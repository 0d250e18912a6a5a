"""LoRA by theory, in float64: identities that no implementation detail may break."""

import pytest
import torch
from oracles import R, close, factors, first_step, gradient, layer, regression

import lorax


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_lora_first_step_moves_b_alone_along_the_rows_of_a():
    model, (loss, batches) = layer(), regression()
    G, given = gradient(model, loss, batches), factors(layer(), "lora")
    adapters = lorax.attach(model, rank=R)
    start = {name: p.clone() for name, p in adapters.named_parameters().items()}
    loss(model, batches[0]).backward()
    torch.optim.SGD(adapters.parameters(), lr=0.1).step()
    now = adapters.named_parameters()
    assert torch.equal(now["0.A"], start["0.A"]) and not torch.equal(now["0.B"], start["0.B"])
    close(adapters.delta()["0"].double(), -0.1 * given.eta**2 * G @ given.A.T @ given.A, 1e-6)


@pytest.mark.parametrize("distribution,variance", [("kaiming", 1 / (3 * 4096)), ("gaussian", 1 / 64)])
def test_lora_a_has_the_declared_law_and_its_own_seed(distribution, variance):
    def draw(seed=0, dtype=torch.float64):
        model = layer(8, 4096, dtype)
        return factors(model, "lora", seed=seed, shared={"rank": 8}, distribution=distribution).A

    assert abs(float(draw().var()) / variance - 1) < 0.03
    assert torch.equal(draw(), draw()) and not torch.equal(draw(), draw(seed=1))
    assert torch.equal(draw().float(), draw(dtype=torch.float32))


def test_rslora_keeps_the_first_decrease_of_the_loss_at_any_rank():
    model, (loss, batches) = layer(64, 256), regression(64, 256)
    G = gradient(model, loss, batches)

    def decrease(rank, scaling):
        given = factors(model, "lora", shared={"rank": rank, "scaling": scaling})
        return -float((first_step(given, G, 1e-9) * G).sum())

    assert decrease(64, "rslora") / decrease(4, "rslora") == pytest.approx(1, rel=0.3)
    assert decrease(64, "standard") / decrease(4, "standard") == pytest.approx(1 / 16, rel=0.3)
