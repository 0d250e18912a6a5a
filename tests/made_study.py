"""A small study whose records are made up: every round is asked for by the protocol and answered here."""

from __future__ import annotations

import math
import zlib
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from lorax.records import RunRecord, Store, run_id
from lorax.reports.study import write_study
from lorax.studies.parse import from_mapping
from lorax.studies.plan import bind
from lorax.studies.registration import freeze, frozen
from lorax.studies.rounds import next_round


def now():
    return datetime.now(UTC).isoformat(timespec="seconds")


# arm -> (best rate, score there, width of the response in decades, trained parameters)
TRUTH = {
    "lora": (1e-3, 0.55, 0.8, 40_000),
    "rslora": (3e-4, 0.55, 0.8, 40_000),
    "pissa": (1e-4, 0.62, 0.7, 40_000),
    "svft": (3e-2, 0.40, 0.9, 900),
    "full": (3e-5, 0.56, 0.7, 2_000_000),
    "base": (1.0, 0.20, 1.0, 0),
}
ITEMS = {"validation": 100, "test": 200}


def made_record(job, spread=0.004, diverge_above=None, items=None, commit="c0"):
    """Answer a job: a score from the arm's response curve, a seed effect, and items that fit it."""
    best, top, width, trained = TRUTH[job.arm]
    settings, frozen_arm = job.settings, trained == 0
    lr = None if frozen_arm else job.lr if job.lr is not None else best
    random = np.random.default_rng(zlib.crc32(f"{job.arm} {job.task} {job.stage} {lr} {job.seed}".encode()))
    score = top if frozen_arm else 0.2 + (top - 0.2) * math.exp(-((math.log10(lr / best) / width) ** 2) * 1.4)
    score = float(np.clip(score + random.normal(0, 0 if frozen_arm else spread), 0, 1))
    diverged = diverge_above is not None and lr is not None and lr > diverge_above * best
    splits = ["validation", "test"] if settings["evaluate"] == "both" else [settings["evaluate"]]
    solved_of = {}
    for split in splits:
        n = (items or ITEMS)[split]
        solved_of[split] = np.random.default_rng(7).permutation(n) < round(score * n)
    spreads = {split: random.uniform(0.5, 1.5, len(solved)) for split, solved in solved_of.items()}
    rows = [
        {"split": split, "id": f"i{i}", "score": float(ok), "tolerant": float(ok), "answer": str(i + 1),
         "completion": f"#### {i + 1}" if ok else "####",
         "loss": (1 - score) * float(spreads[split][i] / spreads[split].mean())}
        for split, solved in solved_of.items()
        for i, ok in enumerate(solved)
    ]  # fmt: skip
    init = {"name": settings["init"], "rank": settings.get("rank", 8), "alpha": settings.get("alpha", 16)}
    init["scaling"] = settings.get("scaling", "standard")
    init = {"name": settings["init"]} if frozen_arm else init
    steps = settings.get("steps", 60)
    entries = {
        split: {"score": float(solved.mean()), "tolerant": float(solved.mean()), "loss": 1 - score, "n": len(solved)}
        for split, solved in solved_of.items()
    }
    identity = {
        "init": init, "task": {"name": job.task, "digest": "t0", "version": 1}, "data_seed": 0,
        "evaluate": settings["evaluate"], "model": {"name": "toy", "digest": "m0"}, "dtype": "float32",
        "versions": {"training": 1},
    }  # fmt: skip
    if not frozen_arm:
        identity |= {
            "lr": lr,
            "steps": steps,
            "batch_size": 8,
            "seed": job.seed,
            "targets": settings.get("targets", "all"),
        }
    config = {key: value for key, value in identity.items() if key != "versions"}
    config |= {"seed": job.seed, "lr": lr, "steps": steps, "batch_size": 8, "targets": settings.get("targets", "all")}
    curve = (
        []
        if frozen_arm
        else [{"step": k, "loss": 0.3 + 2 * math.exp(-k / 15) + 0.2 * (1 - score)} for k in range(1, steps + 1)]
    )
    record = RunRecord(
        run_id=run_id(identity), name=settings["name"], status="diverged" if diverged else "finished",
        error="loss is not finite" if diverged else None, config=config, identity=identity, label=job.arm,
        task={"name": job.task, "metric": "exact match", "direction": "max", "n_train": 480, "digest": "t0"},
        model={"name": "toy", "parameters": 2_500_000, "digest": "m0"},
        scores={} if diverged else entries, curve=curve,
        init_report={"eta": 2.0, "step0_error": 3e-8}, costs={"trainable": trained, "total": 2_000_000},
        diagnostics={} if frozen_arm else {"cosine_first": top, "relative_norm": 0.01 * score, "forgetting": 0.1 * top},
        provenance={"commit": commit, "started": now(), "dirty": False, "device": "cpu", "finished": now()},
    )  # fmt: skip
    if job.stage == "cost":
        record.costs |= {"init_seconds": 2 * best, "step_ms": 30.0, "peak_mb": 300}
    return record, rows


def run_study(store, arms, *, tasks=("words",), stop=None, seeds=(0, 1, 2, 3, 4), made=None, **spec):
    """Drive all rounds, answering each job; `stop` ends before a round of that kind."""
    data = {"name": "demo", "model": "toy", "tasks": list(tasks), "arms": arms, "margin": 0.02, "reference": "lora"}
    data |= {"estimand": "rate"}
    study = from_mapping(
        data | {"seeds": seeds if isinstance(seeds, dict) else list(seeds), "question": "Does it matter?"} | spec
    )

    def rate(overrides):
        init = next(word.split("=")[1] for word in overrides if word.startswith("init="))
        return {"lora": 1e-3, "pissa": 1e-4, "svft": 1e-2, "full": 3e-5}.get(init, 1e-3)

    study = bind(study, lr=rate)
    freeze(study, store.root)
    records = []
    for _ in range(60):
        this = next_round(study, records)
        if this.kind in ("done", stop):
            break
        for job in this.jobs:
            record, rows = made_record(job, **(made or {}))
            record.provenance["chain"] = store.chain_head("demo")
            store.write(record, rows)
            records.append(record)
    return frozen(store.root, "demo")


ARMS = [
    {"init": "lora", "label": "lora"},
    {"init": "lora", "label": "rslora", "scaling": "rslora"},
    {"init": "pissa", "label": "pissa", "alpha": 8},
    {"init": "svft", "label": "svft"},
    {"init": "full", "label": "full"},
    {"init": "none", "label": "base", "trained": False},
]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A finished study: store, name and spec."""
    store = Store(tmp_path_factory.mktemp("demo"))
    return SimpleNamespace(store=store, name="demo", spec=run_study(store, ARMS, tasks=("words", "sums")))


@pytest.fixture(scope="session")
def written(demo):
    """The finished study's report: its text, and its files by name."""
    text, paths = write_study(demo.store, demo.name)
    return text, {path.name: path for path in paths}


@pytest.fixture
def make_study():
    """`run_study`, for tests that want another one."""
    return run_study
