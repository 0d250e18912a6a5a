"""Interleaved measurement: arms in turn, order alternated, medians of paired ratios with quartiles.

On a shared machine, two measurements minutes apart differ by more than most optimisations gain, while two calls in
one round share the machine with the same processes. So every comparison calls its arms in turn, reverses the order in
every other round, and forms ratios within rounds. Nothing here asserts a time.
"""

from __future__ import annotations

import gc
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

OTHERS = 0.10
"""Share of the cores that other processes may use before a comparison is flagged as contended."""
STEAL = 0.02
"""Share of the cores that the hypervisor may take."""


@dataclass(frozen=True)
class Plan:
    """What the command line asked for."""

    quick: bool = False
    only: str = ""
    device: str = "cuda"
    """Where `gpu` measures; the other benchmarks are for a CPU."""
    rounds: int | None = None

    def wants(self, case: str) -> bool:
        """Return whether a case was asked for."""
        return re.search(self.only, case) is not None

    def times(self, usual: int) -> int:
        """Return the number of rounds."""
        return self.rounds or (1 if self.quick else usual)


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of values.

        Examples:
            >>> Spread.of([1.0, 2.0, 3.0])
            Spread(median=2.0, low=1.5, high=2.5, n=3)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


@dataclass
class Row:
    """One figure of a benchmark."""

    case: str
    """What was run: model, batch shape, dtype, method."""
    measure: str
    """What the figure is, and over what if it is a ratio: `PEFT tuned / ours`."""
    unit: str
    """x (a ratio), s, ms, MB, or empty."""
    value: Spread
    machine: dict[str, Any] = field(default_factory=dict)
    """Load average, steal, and other processes' share of the cores while it was measured."""
    note: str = ""
    cpu: float | None = None
    """The same ratio in CPU seconds of this process: with one thread, other processes hardly change it."""


@dataclass
class Trial:
    """One call of an arm, for one unit of its work."""

    seconds: float
    cpu: float


class Stopwatch:
    """Times the units of work between marks, for arms whose first unit is not typical (a fresh optimiser)."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self, *_: Any) -> None:
        """Note the time after a unit of work."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def trial(self, runs: int = 1, skip: int = 1) -> Trial:
        """Return the mean of all units but the first `skip`, for one of `runs` runs that train side by side."""
        (start, cpu), (end, cpu_end) = self.marks[skip - 1], self.marks[-1]
        units = (len(self.marks) - skip) * runs
        return Trial((end - start) / units, (cpu_end - cpu) / units)


@dataclass
class Timings:
    """The trials of a comparison, by arm and round."""

    trials: dict[str, list[Trial]]
    machine: dict[str, Any]

    def seconds(self, arm: str) -> Spread:
        """Return the time of one unit of an arm's work."""
        return Spread.of([trial.seconds for trial in self.trials[arm]])

    def ratio(self, over: str, under: str) -> Spread:
        """Return over / under, formed within rounds."""
        pairs = zip(self.trials[over], self.trials[under], strict=True)
        return Spread.of([a.seconds / b.seconds for a, b in pairs])

    def cpu_ratio(self, over: str, under: str) -> float:
        """Return the median over / under in CPU seconds, formed within rounds."""
        pairs = zip(self.trials[over], self.trials[under], strict=True)
        return statistics.median(a.cpu / max(b.cpu, 1e-9) for a, b in pairs)

    def row(self, case: str, measure: str, over: str, under: str, note: str = "") -> Row:
        """Return a ratio as a row."""
        return Row(case, measure, "x", self.ratio(over, under), self.machine, note, self.cpu_ratio(over, under))

    def times(self, case: str) -> list[Row]:
        """Return every arm's own time as rows."""
        return [Row(case, f"time: {arm}", "ms", _scaled(self.seconds(arm), 1e3), self.machine) for arm in self.trials]


@dataclass
class Prepared:
    """An arm with an untimed preparation before every call, such as a fresh copy of a model."""

    prepare: Callable[[], Any]
    call: Callable[[Any], Any]


def interleave(arms: dict[str, Callable[[], Any] | Prepared], rounds: int, warmup: int = 1) -> Timings:
    """Call every arm once a round, in alternating order.

    Args:
        arms: {name: call}; a call may return how many units of work it did (steps), or the `Trial` that it
            timed itself; otherwise it counts as one unit.
        rounds: timed rounds.
        warmup: rounds before them, not timed.
    """
    names = list(arms)
    for _ in range(warmup):
        for name in names:
            _timed(arms[name])
    trials: dict[str, list[Trial]] = {name: [] for name in names}
    watch = Watch()
    gc.freeze()  # objects of the libraries are left out of the collection before each trial
    with watch:
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                trials[name].append(_timed(arms[name]))
            say(".", end="")
    gc.unfreeze()
    medians = ", ".join(f"{name} {1e3 * Spread.of([t.seconds for t in trials[name]]).median:.1f} ms" for name in names)
    say(f" {medians}{' (contended)' if watch.facts['contended'] else ''}")
    return Timings(trials, watch.facts)


def _timed(arm: Callable[[], Any] | Prepared) -> Trial:
    ready = arm.prepare() if isinstance(arm, Prepared) else None
    gc.collect()
    cpu, start = _cpu_seconds(), time.perf_counter()
    done = arm.call(ready) if isinstance(arm, Prepared) else arm()
    seconds = time.perf_counter() - start
    if isinstance(done, Trial):
        return done
    units = done if isinstance(done, int) and done else 1
    return Trial(seconds / units, (_cpu_seconds() - cpu) / units)


class Watch:
    """What else the machine did during `with`: load average, steal, other processes' share of the cores."""

    def __enter__(self) -> Watch:
        self._start = time.perf_counter()
        self._all, self._ours = psutil.cpu_times(), _our_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        now, cores = psutil.cpu_times(), os.cpu_count() or 1
        room = max(1e-9, (time.perf_counter() - self._start) * cores)
        busy = _busy(now) - _busy(self._all)
        others = max(0.0, busy - (_our_seconds() - self._ours)) / room
        steal = (getattr(now, "steal", 0.0) - getattr(self._all, "steal", 0.0)) / room
        import torch

        self.facts = {
            "load": [round(value, 2) for value in os.getloadavg()],
            "others": round(others, 3),
            "steal": round(steal, 4),
            "contended": others > OTHERS or steal > STEAL,
            "threads": torch.get_num_threads(),
        }


def single(
    case: str, measure: str, unit: str, values: float | Sequence[float], note: str = "", watch: Any = None
) -> Row:
    """Return a row of figures that are not interleaved times."""
    values = [values] if isinstance(values, int | float) else list(values)
    return Row(case, measure, unit, Spread.of(values), {} if watch is None else watch.facts, note)


def say(text: str, end: str = "\n") -> None:
    """Show progress on standard error."""
    print(text, end=end, file=sys.stderr, flush=True)


def _scaled(value: Spread, by: float) -> Spread:
    return Spread(value.median * by, value.low * by, value.high * by, value.n)


def _busy(times: Any) -> float:
    return sum(getattr(times, key, 0.0) for key in ("user", "nice", "system", "irq", "softirq"))


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _our_seconds() -> float:
    """Return the CPU seconds of this process and of all its children, running ones too."""
    total = _cpu_seconds() - time.process_time()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            used = process.cpu_times()
        except psutil.Error:
            continue
        total += used.user + used.system
    return total
