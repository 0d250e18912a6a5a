"""The processes that `torchrun` starts to share one base (`train.shard=fsdp`): who is there, and what they agree on.

    torchrun --nproc-per-node 2 -m lorax.run -m init=lora,pissa hydra/launcher=packed train.shard=fsdp

Each runs the whole command: all see the same packs, of two processes each takes every second run, and both have all
results.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.config import RunConfig

T = TypeVar("T")
KEY = "train.shard"


def is_sharded(config: RunConfig) -> bool:
    """Return whether a run's base is to be spread over processes."""
    return bool(config.train["shard"] != "none")


def check_sharded(config: RunConfig) -> None:
    """Refuse what is not done on a spread base, before anything is loaded.

    Raises:
        UserError: in one line.
    """
    if not is_sharded(config):
        return
    method, fsdp = config.init["name"], f"{KEY}={config.train['shard']}"
    if int(os.environ.get("WORLD_SIZE", 0)) < 2:
        raise UserError(f"{fsdp}: start it as torchrun --nproc-per-node 2 -m lorax.run ... (a process a card)")
    if multiprocessing.current_process().name != "MainProcess":
        raise UserError(f"{fsdp}: torchrun's processes run the jobs themselves; use hydra/launcher=packed or basic")
    if config.initializer().trains and not config.initializer().has_factors:
        raise UserError(f"{fsdp}: only a frozen base is spread, and init={method} trains it")
    if config.recenter == "fold" or config.rules().modules_to_save:
        raise UserError(f"{fsdp}: only an unchanged base is spread; leave out recenter=fold and modules_to_save")
    if config.parts():
        raise UserError(
            f"{fsdp}: processes take whole runs in turn, and a run over a group of tasks is one; leave it out"
        )
    if config.diagnostics:
        raise UserError(f"{fsdp}: diagnostics read the whole base; leave them out")
    if config.train["compile"] not in ("auto", "eager"):
        raise UserError(f"{fsdp}: steps run eager; leave out train.compile={config.train['compile']}")
    from lorax.running.device import resolve_dtype

    if resolve_dtype(config.dtype, config.device) == "bf16-autocast":
        raise UserError(f"{fsdp}: autocast would keep a cast of the whole base; set dtype=bfloat16 or dtype=float32")


@cache
def group() -> tuple[int, int]:
    """Join the other processes, once; return this one's rank and how many there are. Only rank 0 goes on printing."""
    import torch
    from torch import distributed

    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return rank, distributed.get_world_size()


def mine(runs: Sequence[T]) -> list[T]:
    """Return this process's part of a pack."""
    rank, size = group()
    return list(runs[rank::size])


def merged(part: Sequence[T], count: int) -> list[T]:
    """Return what all processes have, in the order from which `mine` took; waits for all of them."""
    from torch import distributed

    size = group()[1]
    parts: list[Any] = [None] * size
    distributed.all_gather_object(parts, list(part))
    return [parts[place % size][place // size] for place in range(count)]


def any_of(fact: bool) -> bool:
    """Return whether it holds in any process; waits for all of them."""
    from torch import distributed

    facts: list[Any] = [None] * group()[1]
    distributed.all_gather_object(facts, fact)
    return any(facts)


def as_first(value: T) -> T:
    """Return what the first process has; waits for all of them."""
    from torch import distributed

    group()
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
