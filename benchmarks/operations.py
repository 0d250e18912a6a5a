"""How many operations does a step dispatch?

Counted, not timed: the same number on every machine, with or without a GPU. At small batches a GPU waits for the
operations that Python hands it one by one, so this is the noise-free twin of its time. Counted is what torch dispatches
and is no view; lists of numbers that become tensors (each a copy to the device); and numbers read back (each waits for
the device). Of the training alone, of `model=toy task=toy` in fp32 on a CPU: steps 5 to 10 of ten, divided by six.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import Plan, Row, say, single
from lorax.config import RunConfig, conf_dir, register_schema, resolve
from lorax.initializers import registry

PACK = 8
FIRST, LAST = 4, 10
"""Steps between which operations are counted: the first ones fill caches."""
MIXES: dict[str, Sequence[str]] = {
    "lora r 2, 4, 8, 16 x 2": [f"init=lora rank={rank}" for rank in (2, 4, 8, 16) for _ in range(2)],
    "lora, pissa, milora, lora_ga x 2": [
        f"init={name}" for name in ("lora", "pissa", "milora", "lora_ga") for _ in range(2)
    ],
    "lora, lora_xs, svft x 3": [f"init={name}" for name in ("lora", "lora_xs", "svft") for _ in range(3)],
}
"""{what a pack holds: each run's words on the command line}."""
_NO_WORK = ("aten::_unsafe_view", "profiler::")
_FROM_LISTS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
_READS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, torch.nonzero, Tensor.nonzero}
_INDEXED = {Tensor.__getitem__, Tensor.__setitem__}


@dataclass(frozen=True)
class Counted:
    """What one step costs, on average."""

    operations: float
    """Dispatched operations that are no views."""
    lists: float
    """Lists of numbers that became tensors."""
    reads: float
    """Times that numbers were read back."""


def run(plan: Plan) -> list[Row]:
    """Count every case that was asked for."""
    rows: list[Row] = []
    for case, words in cases(plan.quick).items():
        if plan.wants(case):
            counted = count(words)
            say(f"{case}: {counted.operations:.0f} operations, {counted.lists:.1f} lists, {counted.reads:.1f} reads")
            rows += [single(case, f"{name} a step", "", value) for name, value in vars(counted).items()]
    return rows


def cases(quick: bool = False) -> dict[str, Sequence[str]]:
    """Return {name: each run's words on the command line}: every method that trains, alone and packed, and mixes."""
    trained = [name for name in registry.names() if registry.build(name).trains]
    packed = [name for name in trained if registry.get(name).has_factors]
    found = {f"{name} K=1": [f"init={name}"] for name in trained if name != "head"}
    found |= {f"{name} K={PACK}": [f"init={name}"] * PACK for name in packed} | MIXES
    return {name: found[name] for name in ("lora K=1",)} if quick else found


def count(runs: Sequence[str], more: Sequence[str] = ()) -> Counted:
    """Train a pack as the command line would, and count what its steps dispatch.

    Args:
        runs: each run's words, such as "init=lora rank=4"; seeds are 0, 1, ...
        more: words for all of them.
    """
    from lorax.models.registry import load
    from lorax.running.execute import build_factors
    from lorax.running.prepared import prepare
    from lorax.running.session import Session

    with tempfile.TemporaryDirectory() as folder:
        prepared = [prepare(_config([*words.split(), f"seed={k}", f"results_dir={folder}", *more]))
                    for k, words in enumerate(runs)]  # fmt: skip
        loaded = load(prepared[0].config.model, labels=None, dtype="float32", device="cpu", seed=0)
        for one in prepared:
            one.begin({})
            one.factors = build_factors(one, loaded)
        session = Session(loaded, _placement(), prepared, None, show=False)
        counter, marks = Counting(), []

        def mark(row: dict[str, float]) -> None:
            marks.append(Counter(counter.found))

        try:
            with mock.patch.object(session.trackers[0], "log", mark), counter:
                session.train()
        finally:
            session.close()
    between = {key: (marks[LAST - 1][key] - marks[FIRST - 1][key]) / (LAST - FIRST) for key in Counted.__annotations__}
    return Counted(**between)


class Counting:
    """Counts what is dispatched while it is open; torch looks at Python functions and at operations in two places."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._modes = (_Functions(self.found), _Operations(self.found))
        self._open = ExitStack()

    def __enter__(self) -> Counting:
        for mode in (*self._modes, mock.patch.object(torch, "from_numpy", self._from_numpy)):
            self._open.enter_context(mode)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def _from_numpy(self, array: Any, made: Callable[[Any], Tensor] = torch.from_numpy) -> Tensor:
        self.found["lists"] += 1
        return made(array)


class _Functions(TorchFunctionMode):
    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found["lists"] += function in _FROM_LISTS or (function in _INDEXED and _holds_list(args[1]))
        self.found["reads"] += function in _READS
        return function(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found["reads"] += function is torch.ops.aten._local_scalar_dense.default
        self.found["operations"] += not function.is_view and not function._schema.name.startswith(_NO_WORK)
        return function(*args, **(kwargs or {}))


def _holds_list(index: Any) -> bool:
    return isinstance(index, list) or (isinstance(index, tuple) and any(isinstance(one, list) for one in index))


def _placement() -> Any:
    from lorax.running.device import Placement

    return Placement("float32", "float32", None, "cpu")


def _config(words: list[str]) -> RunConfig:
    from hydra import compose, initialize_config_dir

    register_schema()
    common = ["model=toy", "task=toy", "device=cpu", "dtype=float32", "track=none", f"steps={LAST}", "cache='off'"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("config", [*common, *words]))
