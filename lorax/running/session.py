"""A pack on a loaded model: installation, step-0 check, training, evaluation, costs. Leaves the base as it was."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorax.records import check_space, knobs
from lorax.records.writing import remove
from lorax.running.device import Placement
from lorax.running.messages import one_line
from lorax.running.prepared import PreparedRun
from lorax.running.sharding.spread import plan_of

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.face import Trainable
    from lorax.adapters.install import Adapters
    from lorax.forward.heads import Head
    from lorax.models.registry import Loaded
    from lorax.probing.cache import Cache
    from lorax.tasks import Task
    from lorax.training.objective import Rewarded
    from lorax.training.run import Outcome, TrainPlan
    from lorax.training.tracking import Tracker

PROJECT = "lorax"


class Session:
    """K runs (usually one) from factors to scores; run k is lane k of the pack.

    Runs may have tasks of their own; those of a pack have one (`lorax.running.groups.session` has others).

    Args:
        loaded: the untouched model; `close` gives it back untouched.
        placement: device and precision.
        runs: with their factors and an open record each.
        cache: of decompositions and gradients.
        show: progress bars on standard error.
    """

    def __init__(self, loaded: Loaded, placement: Placement, runs: list[PreparedRun], cache: Cache | None, show: bool):
        from lorax.training.costs import reset_peak

        self.loaded, self.placement, self.runs, self.cache, self.show = loaded, placement, runs, cache, show
        self.config = runs[0].config
        reset_peak(placement.device)
        self.total = sum(value.numel() for value in loaded.model.parameters())
        self.trains = runs[0].initializer.trains
        self.adapters = self._install()
        self.heads = self._install_heads()
        self.trackers = self._open_trackers()

    def _install(self) -> Sequence[Trainable]:
        model, first = self.loaded.model, self.runs[0]
        if not first.initializer.has_factors:  # such a run shares its base with no other
            return [first.initializer.install(model, first.config.targets, head=self.loaded.head)]
        adapters = self._install_factors()
        for handle, run in zip(adapters, self.runs, strict=True):
            handle.rates, handle.rule = dict(run.initializer.rates), run.initializer.rule()
        return adapters

    def _install_factors(self) -> list[Adapters]:
        from lorax.adapters.install import install
        from lorax.adapters.selection.whole import parameters_of
        from lorax.running.preflight import saved_whole

        model, first = self.loaded.model, self.runs[0]
        factors = [run.factors for run in self.runs]
        dropouts, infos = [run.config.dropout for run in self.runs], [run.identity for run in self.runs]
        if len(factors) == 1:
            adapters = install(model, factors[0], first.config.recenter, dropouts[0], infos[0])
            adapters.train_whole(parameters_of(model, saved_whole(first.config, self.loaded)))
            return [adapters]
        return install(model, factors, first.config.recenter, dropouts, infos)

    def _install_heads(self) -> list[Head]:
        from lorax.forward.heads import install_heads

        return install_heads(self.loaded, self._head_seeds())

    def _head_seeds(self) -> list[int]:
        """Return what draws each run's head; the frozen base consumes no seed, so its untrained head has one seed."""
        return [run.config.seed if self.trains else 0 for run in self.runs]

    def _open_trackers(self) -> list[Tracker]:
        return [self._tracker(run) for run in self.runs]

    def _lanes_by_task(self) -> list[tuple[Task, list[int]]]:
        """Return each task with the lanes of the runs on it."""
        tasks = {id(run.task): run.task for run in self.runs}
        return [(task, [k for k, run in enumerate(self.runs) if run.task is task]) for task in tasks.values()]

    def step0_errors(self) -> list[float]:
        """Return, for each run, the largest change of an output on one training batch before step 1."""
        from lorax.forward.active import active
        from lorax.forward.modality import modality_of
        from lorax.forward.readout import autocast

        if not self.trains:
            return [0.0] * len(self.runs)
        modality = modality_of(self.loaded)
        device = torch.device(self.placement.device)
        errors = [0.0] * len(self.runs)
        with torch.inference_mode(), modality.open():
            for task, lanes in self._lanes_by_task():
                rows, base = modality.encode(task, "train")[: self.config.batch_size], None
                batch = modality.collate(rows[: modality.fits(task, sorted(rows, key=len, reverse=True), 1)])
                for lane in lanes:
                    adapters, heads = self.adapters[lane], self.heads[lane : lane + 1]
                    with active([adapters], heads), autocast(device, self.placement.autocast):
                        output = modality.forward(batch)
                        if base is None or heads:  # each run has a head of its own; the rest of the base is shared
                            with adapters.disabled():
                                base = modality.forward(batch)
                    parts = zip(output.split(1024), base.split(1024), strict=True)  # few in fp64 at a time
                    errors[lane] = max(float((a.double() - b.double()).abs().max()) for a, b in parts)
        return errors

    def train(self) -> list[Outcome]:
        """Train every run; the frozen base is trained in no steps."""
        from lorax.forward.modality import modality_of
        from lorax.training.loop import Outcome, Run, train

        if not self.trains:
            return [Outcome("finished") for _ in self.runs]
        modality = modality_of(self.loaded)
        data = {id(task): modality.encode(task, "train") for task, _ in self._lanes_by_task()}
        for remark in modality.remarks:
            print(remark, flush=True)
        for run in self.runs if modality.remarks else []:
            run.record.task["cut"] = "; ".join(modality.remarks)
        trained = []
        for lane, run in enumerate(self.runs):
            config = run.config
            state = run.store.state(config.name, run.run_id)
            trained.append(
                Run(
                    adapters=self.adapters[lane],
                    data=data[id(run.task)],
                    lr=config.lr,
                    seed=config.seed,
                    weight_decay=config.weight_decay,
                    rates=run.initializer.rates,
                    rule=self.adapters[lane].rule,
                    objective=self._objective(run),
                    head=self.heads[lane] if self.heads else None,
                    # A head that trains alone does so at the run's own rate.
                    head_lr=config.train["head_lr"] if run.initializer.changes_layers else None,
                    plan=self._plan(run),
                    on_step=self._on_step(lane),
                    checkpoint=state / "checkpoint.pt" if config.train["checkpoint_every"] else None,
                    name=run.run_id,
                    **self._grouped(lane),
                )  # fmt: skip
            )
        return train(self.loaded, trained, trained[0].plan)

    def _on_step(self, lane: int) -> Callable[[dict[str, float]], None]:
        """Return what is called with each step of a run."""
        return self.trackers[lane].log

    def _grouped(self, lane: int) -> dict[str, Any]:
        """Return the fields of `Run` that make runs a task group."""
        return {}

    def _objective(self, run: PreparedRun) -> Rewarded | None:
        from lorax.training.objective import Rewarded, reinforce_of

        if run.config.objective == knobs.LIKELIHOOD:
            return None
        return Rewarded(run.task, reinforce_of(run.config.reinforce))

    def _plan(self, run: PreparedRun) -> TrainPlan:
        from lorax.training.loop import TrainPlan

        config = run.config
        keys = ("schedule", "warmup", "clip", "accumulation", "checkpoint_every", "compile", "checkpointing",
                "max_tokens")  # fmt: skip
        plan = TrainPlan(
            steps=config.steps, batch_size=config.batch_size, autocast=self.placement.autocast,
            progress=None if self.show else False, **{key: config.train[key] for key in keys},
        )  # fmt: skip
        return plan_of(config, plan)

    def evaluate(self) -> float:
        """Enter each run's scores and items, split by split; return the seconds of all runs together.

        A run whose training leaves several ranks to choose from (`TrainingRule.scored`) is scored at these too,
        under `<split>@<rank>`.
        """
        wanted = self.config.evaluate
        start = time.perf_counter()
        lower: dict[int, list[int]] = defaultdict(list)
        for lane, adapters in enumerate(self.adapters):
            for rank in adapters.rule.scored() if adapters.rule is not None else ():
                lower[rank].append(lane)
        for split in ["validation", "test"] if wanted == "both" else [wanted]:
            self._score(split, range(len(self.runs)))
            for rank, lanes in sorted(lower.items()):
                self._score(split, lanes, rank)
        return time.perf_counter() - start

    def _score(self, split: str, lanes: Sequence[int], rank: int | None = None) -> None:
        """Enter scores and items of some runs on a split, at a lower rank where one is given."""
        for task, own in self._lanes_by_task():
            if wanted := [lane for lane in own if lane in lanes]:
                self._score_on(task, split, wanted, rank)

    def _score_on(self, task: Task, split: str, lanes: Sequence[int], rank: int | None) -> None:
        from lorax.evaluation.evaluate import evaluate, summarise

        shots = bool(task.shots) and not self.trains
        adapters = [self.adapters[lane] for lane in lanes]
        with ExitStack() as stack:
            for each in adapters:
                if rank is not None and each.rule is not None:
                    stack.enter_context(each.rule.at_rank(each, rank))
            answers = evaluate(
                self.loaded, task, split, adapters if self.trains else None,
                [self.heads[lane] for lane in lanes] if self.heads else [],
                batch_size=self.config.train["eval_batch_size"], autocast_dtype=self.placement.autocast, shots=shots,
            )  # fmt: skip
        name, asked = split if rank is None else f"{split}@{rank}", task.asked(split, shots)
        for lane, items in zip(lanes, answers, strict=True):
            run = self.runs[lane]
            run.record.scores[name] = summarise(items, task.corpus) | task.overall(items)
            run.record.task.setdefault("asked", {})[split] = asked
            run.items.extend(items if rank is None else [item | {"split": name} for item in items])

    def init_report(self, lane: int) -> dict[str, Any]:
        """Return eta and what each layer's initialisation reported."""
        adapters = self.adapters[lane]
        eta, layers = adapters.eta(), adapters.report()
        values = sorted(set(eta.values()))
        dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in adapters.parameters()})
        return {
            "trained_dtype": " and ".join(dtypes) or None,
            "eta": values[0] if len(values) == 1 else [values[0], values[-1]] if values else None,
            "n_layers": len(adapters.layer_adapters()),
            **({} if self.runs[lane].initializer.starts_at_base else {"starts_at_base": False}),
            "summary": _medians(layers),
            "layers": layers,
        }

    def costs(self, lane: int) -> dict[str, Any]:
        """Return trained parameters, their share, bytes of the saved adapter and peak memory."""
        from lorax.training.costs import peak_mb

        adapters = self.adapters[lane]
        head = self.heads[lane].count_trainable() if self.heads and self.trains else 0
        # Full fine-tuning counts the model's own head, in whose place the run's head trains.
        replaced = {id(value) for name in self.loaded.head for value in self._original(name).parameters()}
        body = sum(value.numel() for value in adapters.parameters() if id(value) not in replaced)
        saved = {key: value for key, value in adapters.state_dict().items() if not key.startswith("start.")}
        return {
            "trainable": body + head, "head": head, "total": self.total, "share": (body + head) / self.total,
            "bytes": sum(value.numel() * value.element_size() for value in saved.values()),
            "peak_mb": peak_mb(self.placement.device),
        }  # fmt: skip

    def _original(self, head: str) -> nn.Module:
        """Return the model's own head module, in whose place the runs' heads are."""
        return self.heads[0].packed[head].original[0]

    def check_space(self) -> None:
        """Refuse to train where what will be written does not fit on the disk.

        That is, for each run, its checkpoint (values and two moments; in a pack also the one before) and its adapter,
        each also under another name while it is written.

        Raises:
            Unwritable: in one line: the folder, what is needed and what is free.
        """
        if not self.trains:
            return
        needed: dict[tuple[str, Path], int] = defaultdict(int)
        for lane, run in enumerate(self.runs):
            config, size = run.config, self.costs(lane)
            if config.train["checkpoint_every"]:
                values = 3 * size["trainable"] * 4 + size["bytes"]
                needed["results_dir", run.store.root] += values * (2 if len(self.runs) == 1 else 3)
            if config.save is not None:
                needed["save", Path(config.save)] += size["bytes"] + size["head"] * 4
        for (key, folder), size in needed.items():
            check_space(key, folder, size)

    def save(self) -> None:
        """Save trained adapters, with their heads, where a run asked for it.

        A place that has become full, or any other trouble there, is said and noted in the record: the run stays.
        """
        from lorax.forward.heads import plain_head

        for lane, (run, adapters) in enumerate(zip(self.runs, self.adapters, strict=True)):
            if run.config.save is None or not self.trains:
                continue
            folder = Path(run.config.save) / run.run_id
            try:
                for left in folder.glob(".*"):  # of a killed attempt: this process has claimed the run
                    remove(left)
                with plain_head(self.heads[lane] if self.heads else None, self.loaded):
                    adapters.save(folder, quiet=True, rank=run.config.save_rank)
                run.record.provenance["saved"] = str(folder)
            except Exception as error:
                for left in folder.glob(".*"):
                    remove(left)
                run.record.provenance |= {"saved": None, "save_error": one_line(error)[:300]}
                warnings.warn(f"save={run.config.save}: {one_line(error)[:200]}; the run is kept, without its adapter",
                              stacklevel=2)  # fmt: skip

    def _tracker(self, run: PreparedRun) -> Tracker:
        from lorax.training.tracking import Tracker

        config = run.config
        name = config.label or f"{config.init['name']}-{run.run_id[:6]}"
        folder = None if config.track == "none" else Path("outputs") / config.name / run.run_id
        return Tracker(
            folder, config.to_dict() | {"run_id": run.run_id},
            mode=config.track if self.trains else "none", project=PROJECT, name=name, group=config.name,
            tags=[config.init["name"], config.task["name"]],
        )  # fmt: skip

    def log_results(self) -> None:
        """Log how each run ended: its scores, its costs, its status."""
        for tracker, run in zip(self.trackers, self.runs, strict=True):
            record = run.record
            scores = {f"{split}/{key}": value for split, entry in record.scores.items() for key, value in entry.items()}
            costs = {f"costs/{key}": value for key, value in record.costs.items()}
            step0 = record.init_report.get("step0_error")
            tracker.summary({**scores, **costs, "step0_error": step0, "run_id": record.run_id})
            tracker.finish(record.status)

    def close(self) -> None:
        """Take adapters and heads off again."""
        from lorax.forward.heads import remove_heads

        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.finish, "failed")
            for adapters in self.adapters:
                stack.callback(adapters.detach)
            stack.callback(remove_heads, self.loaded)


def _medians(layers: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the median over layers of every number that all layers report."""
    common = set.intersection(*(set(report) for report in layers.values())) if layers else set()
    return {key: statistics.median(report[key] for report in layers.values()) for key in sorted(common)}
