"""`python -m lorax.run`: one run from configuration to record, or with -m a whole sweep."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig, conf_dir, register_schema, resolve
from lorax.errors import UserError
from lorax.running.command.words import hydra_words
from lorax.running.launch import OUR_SWEEPER
from lorax.running.messages import explain, unexpected

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig


def job(cfg: DictConfig) -> dict[str, Any]:
    """Run one composed configuration; Hydra calls this for every job.

    A sweep checks its jobs before the first starts; a single run is checked here, before it writes anything.

    Returns:
        status, run_id and message. Failures are recorded and returned, not raised, so that the
        other jobs of a sweep go on.
    """
    from hydra.core.hydra_config import HydraConfig

    from lorax.running.launchers.workers import end_with
    from lorax.running.memory_plan import check_memory, memory_plan
    from lorax.running.preflight import preflight

    hydra = HydraConfig.get()
    single = hydra.mode is None or hydra.mode.name == "RUN"
    if multiprocessing.current_process().name != "MainProcess":  # a launcher's worker
        end_with(os.getppid())
    if not single:  # our sweeper waits itself for what other processes have
        return run_one(
            resolve(cfg), provenance=_provenance(hydra), wait=str(hydra.sweeper.get("_target_")) != OUR_SWEEPER
        )
    refused = True
    try:
        config = resolve(cfg)
        preflight([config])
        check_memory([config])
        if config.plan:
            print("\n".join(memory_plan(config).lines()))
            return {"status": "planned", "message": "", "run_id": None}
        refused = False
        return run_one(config, provenance=_provenance(hydra), show=True)
    except Exception as error:  # raised through Hydra it would come with a second line
        if os.environ.get("LORAX_TRACEBACK"):
            raise
        if refused or isinstance(error, UserError | OSError):
            return {"status": "refused", "message": explain(error)}
        return {"status": "failed", "message": unexpected(error)}


def objective(result: Mapping[str, Any]) -> float:
    """Return the number that another sweeper (Optuna, Ax, Nevergrad) looks at: the score on validation.

    Higher is better wherever the task's metric says so (`hydra.sweeper.direction=maximize`). A diverged run is nan.

    Raises:
        UserError: the job failed.
    """
    if result.get("status") not in ("finished", "diverged"):
        raise UserError(str(result.get("message")))
    scores = result.get("scores") or {}
    score = (scores.get("validation") or {}).get("score")
    return math.nan if score is None or result["status"] == "diverged" else float(score)


def run_one(
    config: RunConfig, provenance: dict[str, Any] | None = None, show: bool = False, wait: bool = True
) -> dict[str, Any]:
    """Run one configuration in this process; see `lorax.running.launch`."""
    from lorax.running.launch import run_pack

    return run_pack([config], provenance=provenance, show=show, wait=wait)[0]


def calm_threads(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads spin 1,000 times before they sleep, not 300,000, unless the user has set a policy.

    A spinning thread keeps its core busy. Beside another process it may keep away the very thread it waits for:
    a step then takes four times as long (benchmarks/README.md). OpenMP reads the variable when torch is loaded.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = "1000"


def main() -> None:
    """Run the command line: bad input is one line and exit code 2, failed jobs exit code 1."""
    calm_threads(os.environ)
    try:
        with stoppable():
            code, line = _outcome()
    except KeyboardInterrupt as stop:
        code, line = 128 + (stop.args or (signal.SIGINT,))[0], "stopped; the same command goes on where this one was"
    if code:
        print(f"lorax: {line}", file=sys.stderr)
        sys.exit(code)


@contextmanager
def stoppable() -> Iterator[None]:
    """Treat SIGTERM (`kill`, SLURM's time limit) as Ctrl-C, so that a launcher ends its workers too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.getsignal(signal.SIGTERM)
    if before is None or threading.current_thread() is not threading.main_thread():  # Python cannot set it here
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _outcome() -> tuple[int, str]:
    """Run the command line; return its exit code and the line for it if it is not 0."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and this function words the error
    warnings.formatwarning = _format_warning
    from lorax.running.sweep import JobsFailed

    try:
        sys.argv[1:] = hydra_words(sys.argv[1:])
        result = _hydra_main()
        return _CODES.get(str(result.get("status")), 0), str(result.get("message"))
    except JobsFailed as error:
        return 1, str(error)
    except Exception as error:
        if os.environ.get("LORAX_TRACEBACK"):
            raise
        return 2, explain(error)


_CODES = {"refused": 2, "failed": 1}


def _hydra_main() -> dict[str, Any]:
    """Run Hydra; return the result of a single run, which Hydra would drop."""
    import hydra

    result: dict[str, Any] = {}

    def task(cfg: DictConfig) -> dict[str, Any] | float:
        from hydra.core.hydra_config import HydraConfig

        mode, sweeper = HydraConfig.get().mode, HydraConfig.get().sweeper
        chooses = mode is not None and mode.name == "MULTIRUN" and str(sweeper.get("_target_")) != OUR_SWEEPER
        if chooses and cfg.get("evaluate") == "test":
            raise UserError(
                "this sweeper chooses by a job's score, and only validation may choose: evaluate=validation"
            )
        result.clear()
        result.update(job(cfg))
        return objective(result) if chooses else dict(result)

    register_schema()
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
    return result


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning of this package as one line; others keep Python's format."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"lorax: {message}\n"
    return _python_format(message, category, filename, lineno, line)


_python_format = warnings.formatwarning


def _provenance(hydra: HydraConf) -> dict[str, Any]:
    launcher = str(hydra.launcher.get("_target_", "")).rsplit(".", 1)[-1]
    return {"launcher": launcher or None, "overrides": list(hydra.overrides.task)}


if __name__ == "__main__":
    main()
