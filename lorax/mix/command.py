"""From the words of the command line to a mixture, its record and its table."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorax.config import RunConfig, conf_dir, register_schema, resolve
from lorax.errors import UserError, one_line
from lorax.initializers.from_adapter import From
from lorax.mix.search import State, begin, search
from lorax.mix.settings import Settings, parse
from lorax.records import RunRecord, check_writable, run_id, write_atomic
from lorax.running.command.task_parts import with_parts
from lorax.running.prepared import PreparedRun, now, prepare

if TYPE_CHECKING:
    from lorax.mix.compose import Coefficients
    from lorax.mix.experts import Expert
    from lorax.models.registry import Loaded
    from lorax.running.device import Placement

VERSION = 1
"""Raised when the same words give another mixture."""


@dataclass
class Mixing:
    """A mixture to be searched."""

    folders: list[Path]
    settings: Settings
    run: PreparedRun
    """Its task, id and place in the store."""


def mixture(words: Sequence[str]) -> RunRecord:
    """Search the mixture that the words describe, or return the record of one that was found before.

    Returns:
        Its record, which is in the store.

    Raises:
        UserError: bad input; nothing is written then.
    """
    mixing = prepared(words)
    run = mixing.run
    for key, folder in (("results_dir", run.config.results_dir), ("save", run.config.save)):
        if folder is not None:
            check_writable(key, folder)
    with run.claim() as record:
        if record is None:
            record = _make(mixing, list(words))
        else:
            print(f"{run.run_id} mixture on {run.task.name}: finished before, skipped")
    if run.config.base:
        from lorax.running.launch import run_pack

        run_pack([replace(run.config, init={"name": "none"}, label=None, base=False, save=None)])
    return record


def prepared(words: Sequence[str]) -> Mixing:
    """Read the words, load the task and name the run; the experts' files count by their content.

    Raises:
        UserError: an unknown key or value, or a folder that holds no adapter.
    """
    folders, settings, rest = parse(words)
    config = _composed(rest)
    digests = []
    for folder in folders:
        try:
            digests.append(str(From(path=str(folder)).digest))
        except UserError as error:
            raise UserError(str(error).removeprefix("init=from: path=")) from None
    base = prepare(replace(config, init={"name": "none"}, label=None, base=False, save=None))
    init = {"name": "mix", "version": VERSION, **settings.consumed(), "experts": digests}
    identity = base.identity | {"init": init, "seed": config.seed}
    shown = init | {"lanes": settings.lanes, "paths": [str(folder) for folder in folders]}
    kept = replace(config, init=shown, steps=None, lr=None)
    return Mixing(folders, settings, replace(base, config=kept, identity=identity, run_id=run_id(identity), rate={}))


def _composed(words: list[str]) -> RunConfig:
    """Return the configuration of a run on the same task and model."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mix"):
        config = resolve(compose("config", overrides=["init=none", *with_parts(words)]))
    if config.parts():
        raise UserError(f"task={config.task['name']}: a mixture is searched on one task, not on a group of tasks")
    return config


def _make(mixing: Mixing, words: list[str]) -> RunRecord:
    from lorax.models.registry import load
    from lorax.running.device import resolve_placement
    from lorax.running.preflight import check_task_fits, class_names
    from lorax.training.costs import peak_mb, reset_peak

    run, config, task = mixing.run, mixing.run.config, mixing.run.task
    placement = resolve_placement(config.dtype, config.device)
    loaded = load(
        config.model, labels=class_names(task), dtype=placement.weights, device=placement.device, seed=config.seed
    )
    check_task_fits(config, task, loaded)
    if loaded.head:
        raise UserError(
            f"task={task.name}: its head {loaded.head[0]} is trained apart for every adapter; none is mixed"
        )
    run.begin({"launcher": None, "overrides": words, "started": now(), **placement.facts()})
    run.record.model |= {"dtype": placement.dtype, "attention": loaded.attention, "kind": loaded.kind, **loaded.origin}
    reset_peak(placement.device)
    start = time.perf_counter()
    found = _searched(mixing, loaded, placement)
    run.record.costs["init_seconds"] = found.read_seconds
    run.record.costs["train_seconds"] = time.perf_counter() - start - found.read_seconds
    _score(run, found, loaded, placement)
    run.record.costs["peak_mb"] = peak_mb(placement.device)
    run.record.provenance["finished"] = now()
    run.store.write(run.record, run.items)
    run.store.forget_state(config.name, run.run_id)
    return run.record


@dataclass
class _Found:
    """What the search has found."""

    state: State
    experts: list[Expert]
    coefficients: Coefficients
    compose: str
    normalise: bool
    read_seconds: float
    lanes: int


def _searched(mixing: Mixing, loaded: Loaded, placement: Placement) -> _Found:
    """Read the experts and search, from where a killed search was."""
    from lorax.mix.compose import check, layers
    from lorax.mix.experts import hold_singular_values, read_experts
    from lorax.mix.fitness import Fitnesses, few, spread

    settings, run, start = mixing.settings, mixing.run, time.perf_counter()
    task = few(run.task, settings, run.config.seed)
    experts = read_experts(loaded.model, mixing.folders)
    vectors = settings.compose in (None, "singular_values") and hold_singular_values(loaded.model, experts)
    compose = settings.compose or ("singular_values" if vectors else "sum")
    check(experts, compose, vectors)
    normalise = compose == "singular_values" if settings.normalise is None else settings.normalise
    evaluate = Fitnesses(
        loaded, task, experts, settings, compose, normalise, placement.autocast, run.config.train["eval_batch_size"]
    )
    count = len(experts) * (len(layers(experts)) if settings.per == "layer" else 1)
    method = settings.method(run.config.seed)
    file = run.store.state(run.config.name, run.run_id) / "search.json"
    state = begin([1 / len(experts)] * count, method)
    if file.is_file():
        state = State(**json.loads(file.read_text()))
    read_seconds = time.perf_counter() - start
    state = search(evaluate, state, method, lambda now: write_atomic(file, json.dumps(now.to_dict())))
    coefficients = spread(state.best, settings, experts, normalise)
    return _Found(state, experts, coefficients, compose, normalise, read_seconds, evaluate.lanes)


def _score(run: PreparedRun, found: _Found, loaded: Loaded, placement: Placement) -> None:
    """Put the mixture on the base, save it where that was asked for, and enter its scores into the record."""
    from lorax.adapters.install import install
    from lorax.evaluation.evaluate import evaluate, summarise
    from lorax.mix.compose import mix

    config, record, task, state = run.config, run.record, run.task, found.state
    total = sum(value.numel() for value in loaded.model.parameters())
    info = {"mix": run.identity["init"] | {"compose": found.compose, "coefficients": dict(found.coefficients)}}
    adapters = install(loaded.model, mix(found.experts, found.coefficients, found.compose), info=info)
    try:
        start = time.perf_counter()
        for split in ["validation", "test"] if config.evaluate == "both" else [config.evaluate]:
            [items] = evaluate(
                loaded, task, split, [adapters], batch_size=config.train["eval_batch_size"],
                autocast_dtype=placement.autocast,
            )  # fmt: skip
            record.scores[split] = summarise(items, task.corpus) | task.overall(items)
            record.task.setdefault("asked", {})[split] = task.asked(split)
            run.items.extend(items)
        record.costs["eval_seconds"] = time.perf_counter() - start
        searched = len(state.best)
        record.costs |= {"trainable": searched, "head": 0, "total": total, "share": searched / total}
        eta = sorted(set(adapters.eta().values()))
        record.init_report |= {
            "n_layers": len(adapters.names()),
            "eta": eta[0] if len(eta) == 1 else [eta[0], eta[-1]],
            "starts_at_base": False,
            "mix": {
                "compose": found.compose, "normalise": found.normalise, "coefficients": dict(found.coefficients),
                "fitness": state.fitness, "evaluations": state.evaluations, "generations": state.generation,
                "lanes": found.lanes, "history": state.history,
            },
        }  # fmt: skip
        if config.save is not None:
            folder = Path(config.save) / run.run_id
            try:
                adapters.save(folder, quiet=True)
                record.provenance["saved"] = str(folder)
            except UserError as error:  # the place has become full: what was found stays
                record.provenance |= {"saved": None, "save_error": one_line(error)}
                warnings.warn(f"save={config.save}: {one_line(error)[:200]}; the record is kept", stacklevel=2)
    finally:
        adapters.detach()
