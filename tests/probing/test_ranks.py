"""Two processes with a shard of the batches each: LoRA-GA's factors are those of one process with all of them."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lorax
from lorax.probing.activations import SecondMoments
from lorax.probing.ranks import add_over_ranks, together


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(12, 12, dtype=torch.float64) for _ in range(3))

    def forward(self, x, skip):
        y = self.b(torch.tanh(self.a(x)))
        return y if skip else self.c(torch.tanh(y))


def batches():
    """Of unequal weights; only the last reaches `c`."""
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 12, generator=draw, dtype=torch.float64), n, n < 5) for n in (3, 4, 2, 7, 5)]


def loss(model, batch):
    x, weight, skip = batch
    return model(x, skip).square().mean(), weight


def attached(shard, **fields):
    model = Net()
    return model, lorax.attach(model, init="lora_ga", rank=2, loss=loss, batches=shard, **fields)


def worker(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=40)
    )
    shards = [batches()[:3], batches()[3:]]
    model, adapters = attached(shards[rank], cache=folder / f"cache{rank}")
    torch.save(adapters.state_dict(), folder / f"{rank}.pt")
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    refused = []
    for call in (
        lambda: lorax.attach(DistributedDataParallel(Net()), rank=2),
        lambda: attached(shards[0] if rank else [("no", "batch")]),  # rank 0 alone is wrong, both stop
        lambda: attached(shards[0] if rank else [(torch.full((1, 12), torch.nan).double(), 1, False)]),
        lambda: attached([]),
        lambda: attached(shards[rank], targets=["a"] if rank else ["a", "b"]),
    ):
        try:
            call()
        except ValueError as error:  # a UserError is one
            refused.append(str(error))
    optimiser = torch.optim.SGD(adapters.parameters(), lr=0.1)
    loss(wrapped, shards[rank][-1])[0].backward()
    optimiser.step()
    moments = SecondMoments({"a": model.a})
    if rank:  # rank 0 has seen nothing
        moments._add("a", torch.ones(4, 12, dtype=torch.float64))
    moments.add_ranks()
    moment = moments.means()["a"]
    torch.save((adapters.state_dict(), refused, moment), folder / f"{rank}.after.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    _, alone = attached(batches())
    assert first.keys() == alone.state_dict().keys()
    for key, value in alone.state_dict().items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], value, rtol=1e-8, atol=1e-10)
    (state, refused, moment), (other, line, again) = (torch.load(tmp_path / f"{r}.after.pt") for r in (0, 1))
    assert all(torch.equal(state[key], other[key]) for key in state)  # also after a step under DDP
    assert torch.equal(moment, again) and torch.equal(moment, torch.ones(12, 12, dtype=torch.float64))
    assert "wrapped in DistributedDataParallel: attach to the module inside" in refused[0]
    assert "not enough values" in refused[1] and line[1].startswith("rank 0: ValueError: not enough values")
    assert "the loss is nan" in refused[2] and line[2].startswith("rank 0: ") and "the loss is nan" in line[2]
    assert refused[3] == line[3] and "no batch with a counted label" in line[3]
    assert "rank 1 adapts other layers than rank 0" in refused[4] and "rank 0 adapts other layers" in line[4]


def test_one_process_has_no_ranks(monkeypatch):
    with together(["a"]):
        pass
    with pytest.raises(lorax.UserError, match="mine"), together(["a"]):
        raise lorax.UserError("mine")
    calls = []
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: calls.append(tensor.mul_(2)))
    tensors = [torch.ones(2), torch.ones(3, dtype=torch.float64)]
    add_over_ranks(tensors)
    assert len(calls) == 2 and all(bool((tensor == 2).all()) for tensor in tensors)
