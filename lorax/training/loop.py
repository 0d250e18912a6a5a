"""The training loop, over a list of lanes: a single run is one lane.

K lanes share the frozen base and nothing else. Each has its own data order, loss, clipping,
learning rate, schedule, optimiser state and end, and takes the steps it would take alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from lorax.errors import UserError
from lorax.forward.active import active, pack_of, set_unpadded, set_widths
from lorax.forward.modality import modality_of
from lorax.forward.readout import autocast, device_of
from lorax.training.checkpoint import save_checkpoints
from lorax.training.run import Lane, LaneRun, Outcome, TrainPlan

if TYPE_CHECKING:
    from lorax.models.modality import Modality
    from lorax.models.registry import Loaded

__all__ = ["Lane", "Outcome", "TrainPlan", "train"]


def train(loaded: Loaded, lanes: Sequence[Lane], plan: TrainPlan) -> list[Outcome]:
    """Train K lanes on one frozen base, each as it would train alone.

        loss_k = sum over the labels of lane k's batch of their losses / number of the labels

    The lanes' losses are added and differentiated once; no parameter is shared, so each lane gets
    the gradient of its own loss. A lane whose loss or gradient is not finite is retired before its
    update and recorded as diverged; the others go on untouched. The base is in evaluation mode (no
    dropout of its own), so that arms differ in their adapters only.

    Args:
        loaded: the model that the adapters are installed on.
        lanes: one, or K installed together.
        plan: for every lane that brings none of its own.

    Returns:
        One `Outcome` a lane, in order.

    Raises:
        UserError: lanes of one pack that differ in batch shape or autocast; a batch that cannot be
            split into `accumulation` parts; no training data.
    """
    modality = modality_of(loaded)
    runs = [LaneRun(lane, lane.plan or plan, device_of(loaded.model)) for lane in lanes]
    _check(runs)
    modes = {module: module.training for module in loaded.model.modules()}
    loaded.model.eval()
    for lane in lanes:
        lane.adapters.train(True)
    try:
        with modality.open(), _bar(runs, plan) as bar:
            while going := [run for run in runs if run.going]:
                start = time.perf_counter()
                with active([run.lane.adapters for run in going], [run.lane.head for run in going]):
                    losses = _gradients(modality, going)
                norms = [run.gradient_norm() for run in going]
                # The one wait for the device in a step.
                numbers = torch.stack([losses, torch.stack(norms).to(losses.dtype)]).tolist()
                for run, loss, norm in zip(going, *numbers, strict=True):
                    run.step_with(loss, norm)
                elapsed = time.perf_counter() - start
                for run in going:
                    run.after(elapsed)
                if any(run.due for run in going):  # retired lanes with the others, for the pack to resume as it was
                    save_checkpoints([state for run in runs if (state := run.checkpoint()) is not None])
                bar.set_postfix(loss=f"{sum(numbers[0]) / len(going):.3f}", refresh=False)
                bar.update(max(run.step for run in runs) - bar.n)
    finally:
        set_widths([lane.adapters for lane in lanes], [{} for _ in lanes])
        set_unpadded([lane.adapters for lane in lanes], None)
        for module, mode in modes.items():
            module.training = mode
    return [run.outcome() for run in runs]


def _gradients(modality: Modality[Any], going: list[LaneRun]) -> Tensor:
    """Accumulate the gradient of every active run; return their losses, (K,)."""
    plan, device = going[0].plan, going[0].device
    adapters = [run.lane.adapters for run in going]
    parts = [run.micro_batches() for run in going]
    labels = [sum(len(row.labels) for part in run_parts for row in part) for run_parts in parts]
    scale = going[0].loss_scale
    share = plan.share_prefix and not any(run.drops for run in going)  # under dropout each row has a mask of its own
    total = torch.zeros(len(going), device=device)
    for blocks in zip(*parts, strict=True):
        batch = modality.collate([row for block in blocks for row in block], len(going), share=share)
        set_widths(adapters, batch.widths)
        set_unpadded(adapters, batch if plan.skip_padding else None)
        with autocast(device, plan.autocast):
            losses = modality.losses(modality.forward(batch), batch)
        per_run = losses.split([sum(len(row.labels) for row in block) for block in blocks])
        shares = torch.stack([part.sum() / count for part, count in zip(per_run, labels, strict=True)])
        (shares.sum() * scale).backward()
        total = total + shares.detach()
    return total


def _check(runs: list[LaneRun]) -> None:
    first = runs[0].plan
    if first.batch_size % first.accumulation:
        raise UserError(f"batch_size={first.batch_size}: not a multiple of accumulation={first.accumulation}")
    for key in ("batch_size", "accumulation", "autocast", "share_prefix", "skip_padding"):
        if len({getattr(run.plan, key) for run in runs}) > 1:
            raise UserError(f"lanes of one pack differ in {key}")
    pack_of([run.lane.adapters for run in runs])


def _bar(runs: list[LaneRun], plan: TrainPlan) -> tqdm:
    shown = sys.stderr.isatty() if plan.progress is None else plan.progress
    total = max(run.plan.steps for run in runs)
    label = "train" if len(runs) == 1 else f"train {len(runs)} lanes"
    return tqdm(
        total=total, initial=min(run.step for run in runs), desc=label, disable=not shown, leave=False, unit="step"
    )
