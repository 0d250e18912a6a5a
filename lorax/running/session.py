"""Lanes installed on a loaded model: step-0 check, training, evaluation, costs. Leaves the base as it was."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from lorax.running.device import Place
from lorax.running.prepared import Ready

PROJECT = "lorax"


class Session:
    """K lanes (usually one) from installed factors to scores.

    Args:
        loaded: the untouched model; `close` gives it back untouched.
        place: device and precision.
        lanes: what to run.
        factors: each lane's {layer: Factors}; empty for the arms without adapters.
        show: progress bars on standard error.
    """

    def __init__(self, loaded: Any, place: Place, lanes: list[Ready], factors: list[dict[str, Any]], show: bool):
        from lorax.forward.heads import install_heads
        from lorax.probing.cache import Cache
        from lorax.training.costs import reset_peak

        self.loaded, self.place, self.lanes, self.show = loaded, place, lanes, show
        self.task, self.config = lanes[0].task, lanes[0].config
        reset_peak(place.device)
        self.total = sum(value.numel() for value in loaded.model.parameters())
        self.trains = lanes[0].initializer.kind != "none"
        self.cache = Cache.default() if self.config.cache == "on" else None
        self.adapters = self._install(factors)
        # The frozen base consumes no seed, so its untrained head must not depend on whose base it is.
        self.heads = install_heads(loaded, [lane.config.seed if self.trains else 0 for lane in lanes])
        self.trackers = [self._tracker(lane) for lane in lanes]

    def _install(self, factors: list[dict[str, Any]]) -> list[Any]:
        from lorax.adapters.baselines import Frozen, FullModel, HeadOnly
        from lorax.adapters.install import find_targets, install

        kind, configs = self.lanes[0].initializer.kind, [lane.config for lane in self.lanes]
        if kind == "none":
            return [Frozen(self.loaded.model)]
        if kind == "head":
            return [HeadOnly(self.loaded.model)]
        if kind == "full":
            named = self.config.targets != "all-linear"
            targets = find_targets(self.loaded.model, self.config.targets, self.loaded.head) if named else None
            return [FullModel(self.loaded.model, targets=targets)]
        drops, infos = [config.dropout for config in configs], [lane.identity for lane in self.lanes]
        if len(factors) == 1:
            return [install(self.loaded.model, factors[0], self.config.recenter, drops[0], infos[0])]
        return install(self.loaded.model, factors, self.config.recenter, drops, infos)

    def step0_errors(self) -> list[float]:
        """Return, for each lane, the largest change of an output on one training batch before step 1."""
        from lorax.forward.active import active
        from lorax.forward.modality import modality_of
        from lorax.forward.readout import autocast

        if not self.trains:
            return [0.0]
        modality = modality_of(self.loaded)
        batch = modality.collate(modality.encode(self.task, "train")[: self.config.batch_size])
        errors, base = [], None
        with torch.inference_mode(), modality.open():
            for number, adapters in enumerate(self.adapters):
                heads = self.heads[number : number + 1]
                with active([adapters], heads), autocast(torch.device(self.place.device), self.place.autocast):
                    output = modality.forward(batch)
                    if base is None or heads:  # a lane's head is its own, the rest of the base all lanes share
                        with adapters.disabled():
                            base = modality.forward(batch)
                errors.append(float((output.double() - base.double()).abs().max()))
        return errors

    def train(self) -> list[Any]:
        """Train every lane; the frozen base is trained in no steps."""
        from lorax.forward.modality import modality_of
        from lorax.training.loop import Lane, Outcome, train

        if not self.trains:
            return [Outcome("finished")]
        data = modality_of(self.loaded).encode(self.task, "train")
        lanes = []
        for number, (ready, adapters, tracker) in enumerate(zip(self.lanes, self.adapters, self.trackers, strict=True)):
            config = ready.config
            head_lr = None if ready.initializer.kind == "head" else config.train["head_lr"]
            state = ready.store.state(config.name, ready.run_id)
            lanes.append(
                Lane(
                    adapters=adapters,
                    data=data,
                    lr=config.lr,
                    seed=config.seed,
                    weight_decay=config.weight_decay,
                    head=self.heads[number] if self.heads else None,
                    head_lr=head_lr,
                    plan=self._plan(ready),
                    on_step=tracker.log,
                    checkpoint=state / "checkpoint.pt" if config.train["checkpoint_every"] else None,
                    name=ready.run_id,
                )  # fmt: skip
            )
        return train(self.loaded, lanes, lanes[0].plan)

    def _plan(self, ready: Ready) -> Any:
        from lorax.training.loop import TrainPlan

        config = ready.config
        own = {key: config.train[key] for key in ("schedule", "warmup", "clip", "accumulation", "checkpoint_every")}
        return TrainPlan(
            steps=config.steps, batch_size=config.batch_size, autocast=self.place.autocast,
            progress=None if self.show else False, **own,
        )  # fmt: skip

    def evaluate(self) -> list[tuple[dict[str, Any], list[dict[str, Any]], float]]:
        """Return, for each lane, scores by split, items of all splits, and seconds."""
        from lorax.evaluation.evaluate import evaluate, summarise

        asked = self.config.evaluate
        splits = ["validation", "test"] if asked == "both" else [asked]
        found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [({}, []) for _ in self.lanes]
        start = time.perf_counter()
        for split in splits:
            lanes = self.adapters if self.trains else None
            rows = evaluate(
                self.loaded, self.task, split, lanes, self.heads,
                batch_size=self.config.train["eval_batch_size"], autocast_dtype=self.place.autocast,
                shots=bool(self.task.shots) and not self.trains,
            )  # fmt: skip
            for (scores, items), lane_rows in zip(found, rows, strict=True):
                scores[split] = summarise(lane_rows)
                items.extend(lane_rows)
        seconds = time.perf_counter() - start
        return [(scores, items, seconds) for scores, items in found]

    def init_report(self, number: int) -> dict[str, Any]:
        """Return eta and what each layer's initialisation reported."""
        adapters = self.adapters[number]
        eta, layers = adapters.eta(), adapters.report()
        values = sorted(set(eta.values()))
        kinds = sorted({str(value.dtype).removeprefix("torch.") for value in adapters.parameters()})
        return {
            "trained_dtype": " and ".join(kinds) or None,
            "eta": values[0] if len(values) == 1 else [values[0], values[-1]] if values else None,
            "n_layers": len(eta),
            "summary": _medians(layers),
            "layers": layers,
        }

    def costs(self, number: int) -> dict[str, Any]:
        """Return trained parameters, their share, bytes of the saved adapter and peak memory."""
        from lorax.training.costs import peak_mb

        adapters = self.adapters[number]
        head = self.heads[number].count_trainable() if self.heads and self.trains else 0
        # Full fine-tuning counts the model's own head, in whose place the lane's head trains.
        aside = {id(value) for name in self.loaded.head for value in self._original(name).parameters()}
        own = sum(value.numel() for value in adapters.parameters() if id(value) not in aside)
        kept = {key: value for key, value in adapters.state_dict().items() if not key.startswith("start.")}
        return {
            "trainable": own + head, "head": head, "total": self.total, "share": (own + head) / self.total,
            "bytes": sum(value.numel() * value.element_size() for value in kept.values()),
            "peak_mb": peak_mb(self.place.device),
        }  # fmt: skip

    def _original(self, head: str) -> Any:
        """The model's own module where lanes have their heads."""
        return self.heads[0].packed[head].original[0]

    def save(self) -> None:
        """Save trained adapters, with their heads, where a run asked for it."""
        from lorax.forward.heads import plain_head

        for number, (ready, adapters) in enumerate(zip(self.lanes, self.adapters, strict=True)):
            if ready.config.save is not None and self.trains:
                with plain_head(self.heads[number] if self.heads else None, self.loaded):
                    adapters.save(Path(ready.config.save) / ready.run_id, quiet=True)

    def _tracker(self, ready: Ready) -> Any:
        from lorax.training.tracking import Tracker

        config = ready.config
        name = config.label or f"{config.init['name']}-{ready.run_id[:6]}"
        return Tracker(
            Path("outputs") / config.name / ready.run_id, config.to_dict() | {"run_id": ready.run_id},
            mode=config.track if self.trains else "none", project=PROJECT, name=name, group=config.name,
            tags=[config.init["name"], config.task["name"]],
        )  # fmt: skip

    def report(self, records: list[Any]) -> None:
        """Tell the trackers how each run ended."""
        for tracker, record in zip(self.trackers, records, strict=True):
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
