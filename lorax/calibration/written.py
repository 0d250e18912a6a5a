"""Simulated studies as written records, judged as any study is: through its rounds, its store and `read_study`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lorax.calibration.methods import ITEMS
from lorax.calibration.protocol import ROUNDS, judged, selected, window_rates
from lorax.calibration.until_decided import looked
from lorax.calibration.worlds import Batch, World, draws
from lorax.records import RunRecord, Store, run_id
from lorax.stats.courses import verdicts
from lorax.stats.judge import judge
from lorax.stats.result import Final, StudyResult
from lorax.stats.rule import VERDICTS
from lorax.studies.jobs import Job
from lorax.studies.parse import from_mapping
from lorax.studies.plan import bind
from lorax.studies.rounds import next_round
from lorax.studies.spec import StudySpec
from lorax.studies.study import read_study
from lorax.studies.tuning import rate

_LOWEST, _TUNING = -20, 101
"""The exponent (a quarter of a decade) of the first lattice point, and the first tuning seed."""


def agreement(world: World, tables: int, seed: int = 0, estimand: str = "method") -> dict[str, int]:
    """Judge the first tables of a world from written records, and compare each verdict with that on arrays.

    Args:
        world: what is simulated.
        tables: how many; about a second each.
        seed: of the simulation.
        estimand: method | rate.

    Returns:
        `verdicts` compared, and how many are `equal`: verdict, both ends of the interval, and the adjusted p.
    """
    batch = next(draws(world, tables, seed))
    verdicts, _, codes = judged(batch, estimand, world.margin, items=ITEMS)
    equal = 0
    for table in range(tables):
        with TemporaryDirectory() as folder:
            result = through_records(world, batch, table, Path(folder), estimand)
        for arm, c in enumerate(result.comparisons):
            ends = (verdicts.low[table, arm], verdicts.high[table, arm], verdicts.p_adjusted[table, arm])
            same = all(
                math.isclose(a, b, abs_tol=1e-9) for a, b in zip((c.low, c.high, c.p_adjusted), ends, strict=True)
            )
            equal += same and c.verdict == VERDICTS[codes[table, arm]]
    return {"verdicts": tables * world.arms, "equal": equal}


def same_looks(world: World, tables: int, seed: int = 0) -> dict[str, int]:
    """Judge the first tables of a world with seeds until decided from written records, and compare with the arrays.

    Args:
        world: with as many seeds as may be run.
        tables: how many.
        seed: of the simulation.

    Returns:
        `verdicts` compared, and how many are `equal`: verdict, seeds, both ends of the interval, and the adjusted p.
    """
    batch, equal = next(draws(world, tables, seed)), 0
    for table in range(tables):
        with TemporaryDirectory() as folder:
            result = through_records(
                world, batch, table, Path(folder), "method", {"until_decided": {"max": world.seeds}}
            )
        courses = list(looked(batch, table).courses.values())
        found = verdicts(courses, result.alpha)
        for at, (c, course) in enumerate(zip(result.comparisons, courses, strict=True)):
            ends = min(found.low[at], c.estimate), max(found.high[at], c.estimate), found.p_adjusted[at]
            same = all(
                a == b or math.isclose(a, b, abs_tol=1e-9)
                for a, b in zip((c.low, c.high, c.p_adjusted), ends, strict=True)
            )
            equal += same and c.verdict == VERDICTS[found.code[at]] and len(c.seeds) == course.seeds
    return {"verdicts": tables * world.arms, "equal": equal}


def through_records(
    world: World, batch: Batch, table: int, folder: Path, estimand: str, seeds: object = None
) -> StudyResult:
    """Write one simulated study, run by run as its rounds ask, and return what is read back from the files."""
    spec, store = _spec(world, estimand, seeds), Store(folder)
    records: list[RunRecord] = []
    while (this := next_round(spec, records)).kind != "done":
        made = [_record(job, batch, table) for job in this.jobs]
        for record in made:
            store.write(record)
        records += made
    result = read_study(spec, store).result
    assert result is not None  # every run is there
    return result


def _spec(world: World, estimand: str, seeds: object = None) -> StudySpec:
    tuning = {"extend": 0, "rounds": ROUNDS, "seeds": list(range(_TUNING, _TUNING + world.tuning_seeds))}
    arms = [{"init": "lora", "label": f"arm{at}"} for at in range(world.arms + 1)]
    data = {
        "name": "simulated", "model": "toy", "tasks": ["t"], "reference": "arm0", "arms": arms, "margin": world.margin,
        "estimand": estimand, "seeds": seeds or list(range(world.seeds)), "tuning": tuning, "costs": None,
    }  # fmt: skip
    centre = 10 ** ((_LOWEST + 5.9) / 4)  # its six rates are the pilot's: lattice points 3 to 8
    return bind(from_mapping(data), lr=lambda words: centre)


def _record(job: Job, batch: Batch, table: int) -> RunRecord:
    assert job.lr is not None  # every simulated arm trains
    place = round(4 * math.log10(job.lr)) - _LOWEST
    arm = int(job.arm.removeprefix("arm"))
    if job.stage == "final":
        of_split = {"validation": batch.validation, "test": batch.test}
        wanted = of_split if job.settings["evaluate"] == "both" else {"test": batch.test}
        scores = {split: float(values[table, arm, place, job.seed]) for split, values in wanted.items()}
    else:
        scores = {"validation": float(batch.pilot[table, arm, place, job.seed - _TUNING])}
    identity = {"label": job.arm, "lr": rate(place + _LOWEST), "seed": job.seed, "evaluate": job.settings["evaluate"]}
    task = {"name": job.task, "n_test": ITEMS}
    return RunRecord(
        run_id=run_id(identity), name="simulated", status="finished", label=job.arm, identity=identity,
        config=identity | {"task": task}, task=task, provenance={"finished": "1"},
        scores={split: {"score": score, "loss": 0.0, "n": ITEMS} for split, score in scores.items()},
    )  # fmt: skip


Missing = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Test scores at the shown rates (arms + 1, seeds), generator -> which runs are missing, alike."""


def every_other_short(scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return that every other arm lacks its last three seeds."""
    missing = np.zeros(scores.shape, dtype=bool)
    missing[2::2, -3:] = True
    return missing


def worst_lost(scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return that each arm but the reference has lost its worst run, with probability one half."""
    worst = np.arange(scores.shape[1]) == scores.argmin(axis=1)[:, None]
    return worst & (generator.random((len(scores), 1)) < 0.5) & (np.arange(len(scores)) > 0)[:, None]


def incomplete(world: World, tables: int, missing: Missing, seed: int = 0) -> dict[str, float]:
    """Return the share of tables with a false difference where runs are missing, by estimand, through `judge`.

    Args:
        world: without effects.
        tables: how many.
        missing: `every_other_short` or `worst_lost`.
        seed: of the simulation.
    """
    wrong = {"method": 0, "rate": 0}
    generator = np.random.default_rng(seed)
    for batch in draws(world, tables, seed):
        low, high, best = window_rates(batch)
        chosen = {"method": best, "rate": selected(batch)}
        for table in range(len(batch.peak)):
            for estimand, shown in chosen.items():
                arms = np.arange(world.arms + 1)
                lost = missing(batch.test[table, arms, shown[table]], generator)
                given = shown, shown
                first, last = (low, high) if estimand == "method" else given
                finals = [
                    Final(
                        f"arm{arm}", "t", at, float(batch.test[table, arm, place, at]), ITEMS, lr=float(place),
                        validation=float(batch.validation[table, arm, place, at]), validation_loss=0.0,
                    )
                    for arm in arms
                    for place in range(first[table, arm], last[table, arm] + 1)
                    for at in range(world.seeds)
                    if not lost[arm, at]
                ]  # fmt: skip
                result = judge(finals, reference="arm0", margin=world.margin, estimand=estimand)
                wrong[estimand] += any(c.verdict in ("better", "worse") for c in result.comparisons)
    return {estimand: count / tables for estimand, count in wrong.items()}
