"""Tied parameters: tensors that several lanes of one base train as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorax.adapters.handle import Adapters
from lorax.errors import UserError


def tie(first: Adapters, *others: Adapters, tensors: Sequence[str] = ("A",)) -> None:
    """Let lanes hold the very same parameters, not copies: each step then moves them for all.

    For the runs of a task group, trained as one (`lorax.training.run.Run.task_group`): one optimiser updates a
    tied tensor once, with the sum of the lanes' gradients.

    Args:
        first: its values win.
        others: lanes installed together with it.
        tensors: names of trained tensors: A, B, M; dA, dB, dM of recentred factors, whose A0, B0, M0 must agree;
            with dots, those of an adapter's own parts.

    Raises:
        UserError: another pack, or a tensor that a lane lacks, or has in another shape or from another start.
    """
    sources = first.layer_adapters()
    for other in others:
        if other.pack is not first.pack:
            raise UserError("adapters that were not installed together cannot be tied")
        if other.names() != first.names():
            raise UserError("adapters of different layers cannot be tied")
        for name, adapter in other.layer_adapters().items():
            for tensor in tensors:
                here, there = adapter.trained().get(tensor), sources[name].trained().get(tensor)
                if here is None or there is None or here.shape != there.shape:
                    raise UserError(f"{name}.{tensor} cannot be tied: every lane must train it, in one shape")
                start = f"{tensor.removeprefix('d')}0"
                if tensor.startswith("d") and not torch.equal(getattr(adapter, start), getattr(sources[name], start)):
                    raise UserError(f"{name}.{tensor} cannot be tied: the lanes' {start} differ")
                owner, _, leaf = tensor.rpartition(".")
                adapter.get_submodule(owner).register_parameter(leaf, there)
            other.layer(name).forget()
