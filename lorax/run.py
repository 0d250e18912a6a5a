"""`python -m lorax.run`: one run from configuration to record, or with -m a whole sweep."""

from __future__ import annotations

import os
import sys
from typing import Any

from lorax.config import RunConfig, conf_dir, register_schema, resolve
from lorax.errors import UserError
from lorax.running.explain import explain, is_composition_error, one_line


def job(cfg: Any) -> dict[str, Any]:
    """Run one composed configuration; what Hydra calls for every job.

    A sweep checks its jobs before the first starts; a single run is checked here, before it writes anything.

    Returns:
        status, run_id and message. Failures are recorded and returned, not raised, so that the
        other jobs of a sweep go on.
    """
    from hydra.core.hydra_config import HydraConfig

    from lorax.running.preflight import preflight

    hydra = HydraConfig.get()
    single = hydra.mode is None or hydra.mode.name == "RUN"
    if not single:
        return run_one(resolve(cfg), provenance=_provenance(hydra))
    try:
        config = resolve(cfg)
        preflight([config])
        return run_one(config, provenance=_provenance(hydra), show=True)
    except (UserError, OSError) as error:  # raised through Hydra it would come with a second line
        return {"status": "refused", "message": one_line(error)}


def run_one(config: RunConfig, provenance: dict[str, Any] | None = None, show: bool = False) -> dict[str, Any]:
    """Run one configuration on this process; see `lorax.running.lanes.run_lanes` for the story."""
    from lorax.running.lanes import run_lanes

    return run_lanes([config], provenance=provenance, show=show)[0]


def main() -> None:
    """Run the command line: bad input is one line and exit code 2, failed jobs exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and this function words the error
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lorax.running.sweep import JobsFailed

    sys.argv[1:] = _words(sys.argv[1:])
    try:
        said = _hydra_main()
    except JobsFailed as error:
        sys.exit(_say(str(error), 1))
    except UserError as error:
        sys.exit(_say(one_line(error), 2))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_say(explain(error), 2))
    except KeyboardInterrupt:
        sys.exit(_say("stopped; the same command goes on where this one was", 130))
    except OSError as error:
        sys.exit(_say(one_line(error), 2))
    except Exception as error:
        for one in (error, error.__cause__):
            if is_composition_error(one):
                sys.exit(_say(explain(one), 2))
        raise
    if said.get("status") in _CODES:
        sys.exit(_say(str(said.get("message")), _CODES[said["status"]]))


_CODES = {"refused": 2, "failed": 1}


def _hydra_main() -> dict[str, Any]:
    """Run Hydra; return what a single run says of itself, which Hydra would drop."""
    import hydra

    said: dict[str, Any] = {}

    def task(cfg: Any) -> dict[str, Any]:
        said.update(job(cfg))
        return dict(said)

    register_schema()
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
    return said


def _words(words: list[str]) -> list[str]:
    """Return the command line as Hydra's parser takes it: options first, `+study=`, and -m for a study."""
    options, overrides = [], []
    for before, word in zip(["", *words], words, strict=False):
        value = before in _TAKE_A_VALUE and "=" not in word
        (options if word.startswith("-") or value else overrides).append(word)
    overrides = [f"+{word}" if word.startswith("study=") else word for word in overrides]
    if any(word.startswith("+study=") for word in overrides) and not {word.split("=")[0] for word in options} & _MODES:
        options.insert(0, "--multirun")
    return options + overrides


_MODES = {"-m", "--multirun", "-c", "--cfg", "--help", "-h", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
_TAKE_A_VALUE = (
    "-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir",
    "-i", "--info", "--experimental-rerun",
)  # fmt: skip


def _say(line: str, code: int) -> int:
    print(f"lorax: {line}", file=sys.stderr)
    return code


def _provenance(hydra: Any) -> dict[str, Any]:
    launcher = str(hydra.launcher.get("_target_", "")).rsplit(".", 1)[-1]
    return {"launcher": launcher or None, "overrides": list(hydra.overrides.task)}


if __name__ == "__main__":
    main()
