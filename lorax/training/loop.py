"""The training loop, over the runs of a pack: a single run is a pack of one.

Runs share the frozen base and nothing else. Each has its own data order, loss, clipping, learning
rate, schedule, optimiser state and end, and takes the steps it would take alone.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lorax.errors import UserError
from lorax.forward.active import active, pack_of, set_unpadded
from lorax.forward.blocks.checkpointing import checkpointed
from lorax.forward.modality import modality_of
from lorax.forward.readout import device_of
from lorax.forward.recorders import Recorder
from lorax.records import Unwritable
from lorax.training.checkpoint import save_checkpoints
from lorax.training.compiling import Choice, choose
from lorax.training.ending import Ending, RecordedEnding
from lorax.training.gradients import Eager
from lorax.training.pack_update import PackUpdate
from lorax.training.recording import Recording
from lorax.training.reinforce import RewardedSteps
from lorax.training.run import Outcome, Run, TrainPlan
from lorax.training.state import RunState, restore
from lorax.training.static_step import StaticStep

if TYPE_CHECKING:
    from lorax.models.modality import Modality
    from lorax.models.registry import Loaded

__all__ = ["Outcome", "Run", "TrainPlan", "train"]


def train(loaded: Loaded, runs: Sequence[Run], plan: TrainPlan, recorder: Recorder | None = None) -> list[Outcome]:
    """Train the runs of a pack on one frozen base, each as it would train alone.

        loss_k = sum over the labels of run k's batch of their losses / their number
        differentiated: sum_k w_k loss_k + penalty_k        w_k = 1; in a task group of T runs 1 / T, or `Run.weight`

    The losses are added and differentiated once; runs share no parameter (unless tied, in a task group), so
    each gets the gradient of its own loss. Under `Run.objective` loss_k is that of `lorax.training.reinforce`.
    A run whose loss, penalty or gradient is not finite ends before its update, with status diverged; the others
    go on as they would alone. The base is in evaluation mode (no dropout of its own), so that runs differ in
    their adapters only. What a method does beside the optimiser is its `TrainingRule`, called once a step.

    Args:
        loaded: the model that the adapters are installed on.
        runs: one, or K installed together.
        plan: for every run that brings none of its own.
        recorder: records steps, whatever the plan says; None: as `plan.compile` says.

    Returns:
        One `Outcome` for each run, in order.

    Raises:
        UserError: runs of one pack that differ in batch shape or autocast; a batch that cannot be
            split into `accumulation` parts; no training data.
    """
    modality = modality_of(loaded)
    states = [RunState(run, run.plan or plan, device_of(loaded.model)) for run in runs]
    _check(states)
    _check_lengths(states, modality)
    restore(states)
    updates = PackUpdate(states)
    choice, objective = Choice(recorder), states[0].run.objective
    if recorder is None and objective is None:  # completions have other shapes in every step
        choice = choose(states[0].plan.compile, states, loaded.model, device_of(loaded.model))
    modes = {module: module.training for module in loaded.model.modules()}
    loaded.model.eval()
    for run in runs:
        run.adapters.train(True)
    try:
        with ExitStack() as stack:
            stack.enter_context(modality.open())
            if states[0].plan.checkpointing:
                stack.enter_context(checkpointed(loaded.model, [run.adapters for run in runs]))
            bar = stack.enter_context(_bar(states, plan))
            passes: Eager | StaticStep | RewardedSteps = Eager(modality)
            ending = Ending(updates)
            recording = Recording(choice.recorder)
            if objective is not None:
                passes = RewardedSteps(modality, objective)
            elif choice.recorder is not None:
                stack.enter_context(choice.recorder.open())
                passes = StaticStep(modality, updates, recording, choice.base)
                ending = RecordedEnding(updates, recording)
            if choice.base is not None:
                stack.enter_context(choice.base.open())
            while updates.advance():
                going = [state for state in updates.lanes if state.going]
                start = time.perf_counter()
                _step(passes, updates, ending)
                elapsed = time.perf_counter() - start
                for state in going:
                    state.add_time(elapsed)
                if any(state.due for state in going):  # ended runs with the others, so that the pack resumes as it was
                    updates.collect()
                    _keep([checkpoint for update in updates.updates for checkpoint in update.checkpoints()])
                mean = sum(state.curve[-1]["loss"] for state in going) / len(going)
                bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
                bar.update(max(state.step for state in states) - bar.n)
            how = Choice(recording.recorder, choice.base if choice.base and choice.base.layers else None).name
    finally:
        updates.release()
        for state in states:
            state.finish()
        set_unpadded([run.adapters for run in runs], None)
        for module, mode in modes.items():
            module.training = mode
    return [replace(state.outcome(), compiled=how) for state in states]


def _keep(checkpoints: list[tuple[Path, str, dict[str, Any]]]) -> None:
    """Write checkpoints; where they cannot be written, say so once and train on: the ones before are still there."""
    try:
        save_checkpoints(checkpoints)
    except Unwritable as error:
        warnings.warn(f"{str(error)[:200]}; training goes on without this checkpoint", stacklevel=2)


def _step(passes: Eager | StaticStep | RewardedSteps, updates: PackUpdate, ending: Ending) -> None:
    """Take one step with every run that is going."""
    lanes = updates.lanes
    for state in lanes:
        if state.going:
            state.before_forward()
    updates.start()
    with active([state.run.adapters for state in lanes], [state.run.head for state in lanes]), updates.held():
        losses = passes.gradients(lanes)
    ending.run(losses)


def _check(states: list[RunState]) -> None:
    first = states[0].plan
    if first.batch_size % first.accumulation:
        raise UserError(f"batch_size={first.batch_size}: not a multiple of accumulation={first.accumulation}")
    for key in (
        "batch_size",
        "accumulation",
        "autocast",
        "share_prefix",
        "skip_padding",
        "compile",
        "checkpointing",
        "max_tokens",
    ):
        if len({getattr(state.plan, key) for state in states}) > 1:
            raise UserError(f"runs of one pack differ in {key}")
    if any(state.run.objective != states[0].run.objective for state in states):
        raise UserError("runs of one pack differ in their objective")
    if states[0].run.objective is not None and any(state.drops for state in states):
        raise UserError("objective=reinforce: completions are drawn without dropout; train with dropout=0")
    if states[0].run.objective is not None and any(state.penalises_batches for state in states):
        raise UserError("objective=reinforce adds no penalty of a router's balance to its loss; train with balance=0")
    pack_of([state.run.adapters for state in states])


def _check_lengths(states: list[RunState], modality: Modality[Any]) -> None:
    """Refuse a bound on tokens that a single example is above."""
    bound = states[0].plan.max_tokens
    data = {id(state.run.data): state.run.data for state in states if bound is not None}
    longest = max((modality.padded([row]) for rows in data.values() for row in rows), default=0)
    if bound is not None and longest > bound:
        raise UserError(
            f"train.max_tokens={bound}: an example of the training split has {longest} tokens; allow as many"
        )


def _bar(states: list[RunState], plan: TrainPlan) -> tqdm:
    shown = sys.stderr.isatty() if plan.progress is None else plan.progress
    total = max(state.plan.steps for state in states)
    label = "train" if len(states) == 1 else f"train {len(states)} runs"
    return tqdm(
        total=total,
        initial=min(state.step for state in states),
        desc=label,
        disable=not shown,
        leave=False,
        unit="step",
    )
