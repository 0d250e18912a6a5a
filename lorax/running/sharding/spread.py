"""A pack on a base that is spread over processes: what each does beside its own runs, so that all do the same passes.

Every process loads the base into main memory, builds its runs' factors there (decompositions and gradients see plain,
whole weights), installs them, and then keeps its share of each block on its device. Loading again for each pack is the
price: what was spread is not put together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError
from lorax.running.sharding.processes import is_sharded

if TYPE_CHECKING:
    from lorax.adapters.face import Trainable
    from lorax.config import RunConfig
    from lorax.models.registry import Loaded
    from lorax.running.device import Placement


def load_whole(config: RunConfig, labels: Sequence[str] | None, placement: Placement) -> Loaded:
    """Load a run's base: to its device, or where it is to be spread, into main memory.

    Raises:
        UserError: a base of a kind that is not spread.
    """
    from lorax.models.registry import load

    device = "cpu" if is_sharded(config) else placement.device
    loaded = load(config.model, labels=labels, dtype=placement.weights, device=device, seed=config.seed)
    if is_sharded(config) and (loaded.kind != "causal" or loaded.modality is not None):
        raise UserError(f"train.shard=fsdp: written for causal language models; model={loaded.name} is {loaded.kind}")
    return loaded


@contextmanager
def spread(config: RunConfig, loaded: Loaded, adapters: Sequence[Trainable], placement: Placement) -> Iterator[None]:
    """Spread the base inside, if the run asks for it; at the end compute along until all processes are through."""
    if not is_sharded(config):
        yield
        return
    import torch

    from lorax.forward.blocks.sharded import shard

    lockstep = shard(loaded, adapters, torch.device(placement.device))
    try:
        yield
    finally:
        lockstep.idle_along()
        lockstep.close()


def plan_of(config: RunConfig, plan: Any) -> Any:
    """Return a training plan whose steps are one forward and one backward pass, where all processes do the same."""
    return replace(plan, share_prefix=False, compile="eager") if is_sharded(config) else plan
