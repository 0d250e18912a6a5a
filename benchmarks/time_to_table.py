"""How long until the table is there?

One small study (LoRA, PiSSA, LoRA-GA; two seeds), from the command to the printed table: `python -m lorax.run -m ...
hydra/launcher=packed` against `benchmarks/peft_study.py`, a loop on PEFT and transformers with the same data, steps,
evaluation and attention. Both are processes of their own, start-up included. Lorax also runs with the cache of an
earlier study of the same model.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.harness import Plan, Row, interleave, say, single
from lorax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Study:
    """A small grid; every run of it is the same work on both sides."""

    model: str
    task: str
    fields: dict[str, Any]
    steps: int
    batch_size: int
    lrs: tuple[float, ...] = (1e-3,)
    inits: tuple[str, ...] = ("lora", "pissa", "lora_ga")
    seeds: tuple[int, ...] = (0, 1)
    model_fields: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def runs(self) -> int:
        """Number of cells times seeds."""
        return len(self.inits) * len(self.lrs) * len(self.seeds)

    def command(self, folder: Path, name: str, first_seed: int = 0) -> list[str]:
        """Return the arguments of `lorax.run`."""
        seeds = ",".join(str(first_seed + seed) for seed in self.seeds)
        return [
            "-m", f"init={','.join(self.inits)}", f"lr={','.join(f'{lr:g}' for lr in self.lrs)}", f"seed={seeds}",
            f"model={self.model}", f"task={self.task}",
            *(f"++task.{key}={value}" for key, value in self.fields.items()),
            *(f"model.{key}={value}" for key, value in self.model_fields.items()),
            "rank=8", f"steps={self.steps}", f"batch_size={self.batch_size}", "hydra/launcher=packed",
            f"dtype={self.dtype}", f"device={self.device}", "base=false", "track=none",
            f"results_dir={folder}", f"name={name}",
        ]  # fmt: skip

    def spec(self) -> dict[str, Any]:
        """Return what `peft_study` reads."""
        return {
            "model": _composed("model", self.model) | {"attention": "sdpa"} | self.model_fields,
            "dtype": self.dtype,
            "device": self.device,
            "task": _composed("task", self.task) | self.fields,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "runs": [
                {"init": init, "lr": lr, "seed": seed, "rank": 8}
                for init in self.inits
                for lr in self.lrs
                for seed in self.seeds
            ],
        }


STUDIES = {
    "smollm2": Study("smollm2", "chain_sum", {"n_train": 200, "n_validation": 8, "n_test": 48}, 20, 4),
    "minilm": Study("minilm", "banking77", {"n_validation": 8}, 40, 8, lrs=(5e-4, 2e-3)),
}
TINY = Study("toy", "toy", {"n_test": 8, "n_train": 64}, 3, 4, inits=("lora", "pissa", "lora_ga"), seeds=(0,))


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    if plan.quick:
        return _study("toy", TINY, plan)
    rows: list[Row] = []
    for name, study in STUDIES.items():
        if plan.wants(f"{name} {study.task}"):
            rows += _study(name, study, plan)
    return rows


def _study(name: str, study: Study, plan: Plan) -> list[Row]:
    if study.task == "banking77":
        data = os.environ.get("LORAX_DATA")
        if not data:
            say("banking77 is left out: set LORAX_DATA to the folder that holds banking77/train.csv")
            return []
        study.fields["path"] = str(Path(data).resolve() / "banking77")
    with tempfile.TemporaryDirectory() as scratch:
        return _measured(name, study, Path(scratch), plan)


def _measured(name: str, study: Study, folder: Path, plan: Plan) -> list[Row]:
    _prepare_model(study, folder, plan)
    spec, count, tables = folder / "study.json", iter(range(100)), {}
    spec.write_text(json.dumps(study.spec()))

    def ours(warm: bool) -> None:
        number = next(count)
        cache = folder / ("models" if warm else f"cold{number}")
        if not warm:
            _link(folder / "models", cache)
        first = 10 * (number + 1) if warm else 0
        command = study.command(folder / f"results{number}", f"adhoc{number}", first)
        tables["ours warm" if warm else "ours"] = call("lorax.run", command, cache, folder, plan.quick)
        if not warm and plan.rounds is None:
            _link(cache, folder / "models")

    def peft() -> None:
        tables["PEFT"] = call("benchmarks.peft_study", [str(spec)], folder / "models", folder, plan.quick)

    arms = {"ours": lambda: ours(False), "PEFT": peft, "ours, cache filled": lambda: ours(True)}
    say(f"{name}: {study.runs} runs ", end="")
    timings = interleave(arms, plan.rounds or 1, warmup=0)
    case = f"{study.model} {study.task}, {study.runs} runs of {study.steps} steps x {study.batch_size}"
    return [
        timings.row(case, "PEFT script / ours", "PEFT", "ours"),
        timings.row(case, "PEFT script / ours, cache filled", "PEFT", "ours, cache filled"),
        *(Row(case, f"{arm}", "s", timings.seconds(arm), timings.machine) for arm in arms),
        single(case, "mean score, ours", "", _mean_of_records(folder / "results0")),
        single(case, "mean score, PEFT", "", _mean_of_table(tables["PEFT"])),
    ]


def _prepare_model(study: Study, folder: Path, plan: Plan) -> None:
    """Convert the model once, as an earlier run would have; the cache of decompositions stays empty."""
    (folder / "models").mkdir()
    if not plan.quick:
        loading = f"from lorax.models import registry; registry.load({study.spec()['model']!r}, labels=['a', 'b'])"
        _python(["-c", loading], folder / "models", folder)


def _link(source: Path, target: Path) -> None:
    """Link the files of one cache folder into another."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
    target.mkdir(parents=True, exist_ok=True)


def call(module: str, arguments: list[str], cache: Path, folder: Path, inside: bool) -> str:
    """Run a module to its end and return what it printed; `inside` this process, for quick checks."""
    if not inside:
        return _python(["-m", module, *arguments], cache, folder)
    import importlib

    output, before = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with (
            mock.patch.dict(os.environ, {"LORAX_CACHE": str(cache)}),
            mock.patch.object(sys, "argv", [module, *arguments]),
            contextlib.redirect_stdout(output),
        ):
            entry = importlib.import_module(module).main
            entry(arguments[0]) if module.endswith("peft_study") else entry()
    finally:
        os.chdir(before)
    return output.getvalue()


def _python(arguments: list[str], cache: Path, folder: Path) -> str:
    environment = os.environ | {"LORAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(arguments)[:60]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _composed(group: str, name: str) -> dict[str, Any]:
    """Return conf/<group>/<name>.yaml with its defaults filled in."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from lorax.config import conf_dir, register_schema

    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return OmegaConf.to_container(compose("config", [f"{group}={name}"])[group], resolve=True)


def _mean_of_records(folder: Path) -> float:
    scores = []
    for path in folder.rglob("*.json"):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and record.get("status") == "finished":
            scores.append(record["scores"]["test"]["score"])
    return sum(scores) / len(scores)


def _mean_of_table(text: str) -> float:
    cells = [line.split("|")[3] for line in text.splitlines() if line.startswith("| ") and "init" not in line]
    return sum(map(float, cells)) / len(cells)
