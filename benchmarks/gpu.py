"""How busy is a GPU kept, against PEFT on the same card?

Random weights of SmolLM2-135M's shape, bf16 autocast, rank 8 on all linear layers; no file is read and nothing is
fetched. Every step is a whole one: forward, loss, backward, clipping, AdamW. Times are for one run and step, so that
PEFT's steps one by one are compared with a pack's. At most eight minutes: what would not fit is left out, and said.

    python -m benchmarks gpu                        on a machine with a GPU
    python -m benchmarks gpu --quick --device cpu   tries the benchmark itself
"""

from __future__ import annotations

import gc
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.decompositions import on_device
from benchmarks.harness import Plan, Row, say, single
from benchmarks.subjects import Shape, lorax_arm, lorax_runs, peft_arm, random_model, sharing_copy
from benchmarks.time_to_table import Study, call
from lorax.errors import UserError
from lorax.forward.logits import chunked_loss
from lorax.forward.recorders import CudaGraphs, Recorder, Rerun
from lorax.probing.cache import Cache
from lorax.training.costs import peak_mb, reset_peak
from lorax.training.loop import TrainPlan, train

LIMIT = 480
"""Seconds in which the benchmark ends."""
LORA: dict[str, Any] = {"name": "lora"}
PACKS: dict[str, list[dict[str, Any]]] = {
    "svft": [{"name": "svft"}] * 8,
    "pissa": [{"name": "pissa"}] * 8,
    "lora r 2, 4, 8, 16": [{"name": "lora", "rank": rank} for rank in (2, 4, 8, 16) for _ in range(2)],
    "lora, pissa, milora, lora_ga": [
        {"name": name} for name in ("lora", "pissa", "milora", "lora_ga") for _ in range(2)
    ],
    "lora, lora_xs, svft": [{"name": name} for name in ("lora", "lora_xs", "svft") for _ in range(3)][:8],
}
"""Packs of eight that are compared with eight of LoRA."""
STUDY = Study(
    "toy", "toy", {"n_train": 512, "n_validation": 8, "n_test": 200}, steps=60, batch_size=8, lrs=(1e-3, 3e-3),
    model_fields={"hidden": 576, "layers": 30}, dtype="bf16-autocast", device="cuda",
)  # fmt: skip


@dataclass
class Bench:
    """One card, one model, and the time that is left."""

    plan: Plan
    device: torch.device
    folder: Path
    start: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)
    steps: dict[str, float] = field(default_factory=dict)
    """ms of a step of one run, by case and arm."""

    def __post_init__(self) -> None:
        self.loaded = random_model(self.plan.quick, str(self.device))
        self.cache = Cache(self.folder / "cache")

    @property
    def left(self) -> float:
        """Seconds."""
        return LIMIT - (time.monotonic() - self.start)

    def recorder(self) -> Recorder:
        """Return what records steps here; on a CPU the same steps are only run again."""
        return CudaGraphs(self.device) if self.device.type == "cuda" else Rerun()

    def shape(self, rows: int, tokens: int) -> Shape:
        """Return a batch of one run."""
        return Shape("tiny" if self.plan.quick else "random", *((2, 8) if self.plan.quick else (rows, tokens)), "bf16")

    def measure(self, shape: Shape, arm: str, seconds: float, make: Callable[[], Callable[[], Any]]) -> None:
        """Time a step of an arm, note its peak memory, and say both; leave it out where it would not fit.

        Args:
            shape: batch of one run.
            arm: what is run.
            seconds: that it needs at most.
            make: builds the arm.
        """
        case = _case(shape)
        name = f"{case} {arm}"
        if not self.plan.wants(name):
            return
        if self.left < seconds:
            say(f"{name}: left out, {self.left:.0f} s are left")
            return
        try:
            reset_peak(self.device)
            trial = make()()
            peak = peak_mb(self.device)
        except torch.OutOfMemoryError:
            say(f"{name}: does not fit into the card's memory")
            return
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        ms = self.steps[name] = 1e3 * trial.seconds
        say(f"{LIMIT - self.left:4.0f} s  {name}: {ms:.2f} ms a run and step, peak {peak:.0f} MB")
        tokens = 1e3 / ms * shape.rows * shape.tokens
        self.rows += [
            single(case, f"time of a run's step: {arm}", "ms", ms),
            single(case, f"tokens a second: {arm}", "", tokens),
            single(case, f"peak memory: {arm}", "MB", peak),
        ]

    def ratio(self, case: str, over: str, under: str, measure: str = "") -> None:
        """Add over / under as a row, where both were measured; `under` may be of another case."""
        a, b = self.steps.get(f"{case} {over}"), self.steps.get(f"{case} {under}", self.steps.get(under))
        if a is not None and b is not None:
            say(f"{'':8}{case}: {measure or f'{over} / {under}'} = {a / b:.2f}")
            self.rows.append(single(case, measure or f"{over} / {under}", "x", a / b))


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for, the shortest and most telling first."""
    device = torch.device(plan.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("gpu: this machine has no CUDA device; `--quick --device cpu` tries the benchmark without one")
    if device.type != "cuda" and not plan.quick:
        raise UserError(f"gpu: on {plan.device} there is only --quick, which tries the benchmark")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(plan, device, Path(folder))
        for part in (_packs, _memory, _same_losses, _decompositions, _mixes, _time_to_table, _compiled):
            part(bench)
        return bench.rows


def _ours(bench: Bench, shape: Shape, inits: Sequence[dict[str, Any]], graph: bool, **more: Any) -> Callable[[], Any]:
    recorder = bench.recorder if graph else None
    return lorax_arm(
        sharing_copy(bench.loaded), shape, inits, _steps(bench), recorder=recorder, cache=bench.cache, **more
    )


def _case(shape: Shape) -> str:
    return f"{shape.rows} x {shape.tokens}"


def _steps(bench: Bench) -> int:
    return 1 if bench.plan.quick else 10


def _packs(bench: Bench) -> None:
    """One run and packs of LoRA, as they come and recorded, against PEFT one by one."""
    for rows, tokens, counts in ((8, 64, (1, 8, 32)), (16, 512, (4,))):
        shape = bench.shape(rows, tokens)
        case = _case(shape)
        bench.measure(shape, "PEFT", 30, partial(peft_arm, sharing_copy(bench.loaded, "sdpa"), shape, _steps(bench)))
        for count in counts[:1] if bench.plan.quick else counts:
            for graph in (False, True):
                if count > 8 and not graph:
                    continue
                arm = f"K={count} {'graph' if graph else 'eager'}"
                bench.measure(shape, arm, 45, partial(_ours, bench, shape, [LORA] * count, graph))
                bench.ratio(case, "PEFT", arm, f"PEFT one by one / {arm}")
            bench.ratio(case, f"K={count} eager", f"K={count} graph")


def _memory(bench: Bench) -> None:
    """What takes less memory, against the same pack as it is: time and peak of 16 x 512 tokens, K = 4."""
    shape = bench.shape(16, 512)
    case, inits = _case(shape), [LORA] * (1 if bench.plan.quick else 4)
    plain = f"K={len(inits)} graph"
    bound = 4 * shape.tokens * len(inits) if not bench.plan.quick else 16
    ways: dict[str, dict[str, Any]] = {
        "checkpointed": {"checkpointing": True},
        f"{bound} tokens at once": {"max_tokens": bound},
        "both": {"checkpointing": True, "max_tokens": bound},
    }
    for name, fields in ways.items():
        arm = f"{plain}, {name}"
        bench.measure(shape, arm, 45, partial(_ours, bench, shape, inits, True, **fields))
        bench.ratio(case, plain, arm)
    with _logits_at_once():
        arm = f"{plain}, logits at once"
        bench.measure(shape, arm, 45, partial(_ours, bench, shape, inits, True))
    bench.ratio(case, arm, plain)


@contextmanager
def _logits_at_once() -> Iterator[None]:
    """Compute no losses in chunks inside."""
    before, chunked_loss.FROM = chunked_loss.FROM, 1 << 62
    try:
        yield
    finally:
        chunked_loss.FROM = before


def _same_losses(bench: Bench) -> None:
    """Recorded steps against steps as they come: the largest relative difference of a loss."""
    if not bench.plan.wants("losses") or bench.left < 30:
        return
    shape, curves = bench.shape(8, 64), []
    for recorder in (None, bench.recorder()):
        loaded = sharing_copy(bench.loaded)
        plan = TrainPlan(steps=8, batch_size=shape.rows, autocast=shape.autocast, progress=False, compile="eager")
        outcomes = train(loaded, lorax_runs(loaded, shape, [LORA] * 2, cache=bench.cache), plan, recorder)
        curves.append([row["loss"] for outcome in outcomes for row in outcome.curve])
    worst = max(abs(a - b) / abs(a) for a, b in zip(*curves, strict=True))
    say(f"{'':8}losses, graph against eager: {worst:.1e}")
    bench.rows.append(single(f"{_case(shape)}, K=2", "largest relative difference of a loss: graph / eager", "", worst))


def _decompositions(bench: Bench) -> None:
    """PiSSA, MiLoRA and LoRA-XS on layers of an 8B model's shapes."""
    if not bench.plan.wants("decompositions"):
        return
    if bench.left < 120 and not bench.plan.quick:
        say(f"decompositions: left out, {bench.left:.0f} s are left")
        return
    bench.rows += on_device(bench.device, bench.plan.quick)


def _mixes(bench: Bench) -> None:
    """Packs of other methods against packs of LoRA, all recorded."""
    shape = bench.shape(8, 64)
    case = _case(shape)
    for name, inits in PACKS.items():
        arm = f"K=8 {name} graph"
        chosen = inits[::4] if bench.plan.quick else inits
        bench.measure(shape, arm, 60, partial(_ours, bench, shape, chosen, True))
        bench.ratio(case, "K=8 graph", arm, f"LoRA / {name}, packs of 8")


def _time_to_table(bench: Bench) -> None:
    """A study from its command to its table; PEFT's script takes one run in four, the others are added."""
    if not bench.plan.wants("table"):
        return
    if bench.left < 150 and not bench.plan.quick:
        say(f"time to table: left out, {bench.left:.0f} s are left")
        return
    study = STUDY
    if bench.plan.quick:
        study = replace(STUDY, fields={"n_train": 32, "n_validation": 4, "n_test": 4}, steps=2, batch_size=4,
                        seeds=(0,), inits=("lora",), model_fields={}, dtype="float32", device="cpu")  # fmt: skip
    few, inside = replace(study, lrs=study.lrs[:1], seeds=study.seeds[:1]), bench.plan.quick
    spec = bench.folder / "study.json"
    spec.write_text(json.dumps(few.spec()))
    start = time.perf_counter()
    call("lorax.run", study.command(bench.folder / "results", "gpu"), bench.folder / "cold", bench.folder, inside)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    told = call("benchmarks.peft_study", [str(spec)], bench.folder / "cold", bench.folder, inside)
    theirs = time.perf_counter() - start
    [(count, took)] = re.findall(r"(\d+) runs took ([\d.]+) s", told)
    theirs += (study.runs / int(count) - 1) * float(took)
    case = f"{study.runs} runs of {study.steps} steps x {study.batch_size}, {study.fields['n_test']} items"
    say(f"{LIMIT - bench.left:4.0f} s  {case}: ours {ours:.1f} s, PEFT's script {theirs:.1f} s, {theirs / ours:.1f} x")
    note = f"PEFT's {count} of {study.runs} runs measured"
    bench.rows += [
        single(case, "time to table: PEFT script / ours", "x", theirs / ours, note),
        single(case, "time to table: ours", "s", ours),
        single(case, "time to table: PEFT script", "s", theirs, note),
    ]


def _compiled(bench: Bench) -> None:
    """Both with torch.compile, which takes about two minutes to compile; ours is recorded as well."""
    shape = bench.shape(8, 64)
    case = _case(shape)
    if bench.plan.quick:
        return
    model = sharing_copy(bench.loaded, "sdpa")
    bench.measure(shape, "PEFT compiled", 150, partial(peft_arm, model, shape, _steps(bench), True))
    for arm in ("K=1 graph", "K=8 graph"):
        bench.ratio(case, "PEFT compiled", arm, f"PEFT compiled, one by one / {arm}")
    loaded, steps = sharing_copy(bench.loaded), _steps(bench)
    compiled = partial(lorax_arm, loaded, shape, [LORA], steps, cache=bench.cache, compile="inductor")
    bench.measure(shape, "K=1 inductor", 150, compiled)
    bench.ratio(case, "K=1 graph", "K=1 inductor")
