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

    Returns:
        status, run_id and message. Failures are recorded and returned, not raised, so that the
        other jobs of a sweep go on.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    single = hydra.mode is None or hydra.mode.name == "RUN"
    if not single:
        return run_one(resolve(cfg), provenance=_provenance(hydra))
    try:
        _LAST.update(run_one(resolve(cfg), provenance=_provenance(hydra), show=True))
    except UserError as error:  # raised through Hydra it would come with a second line
        _LAST.update(status="refused", message=one_line(error))
    return _LAST


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

    sys.argv[1:] = [f"+{word}" if word.startswith("study=") else word for word in sys.argv[1:]]
    # Hydra's parser takes -m before the overrides only; people write it anywhere.
    flags = [word for word in sys.argv[1:] if word in ("-m", "--multirun")]
    sys.argv[1:] = flags[:1] + [word for word in sys.argv[1:] if word not in flags]
    if any(word.startswith("+study=") for word in sys.argv) and not _asks_for_mode():
        sys.argv.insert(1, "--multirun")
    try:
        _hydra_main()
    except JobsFailed as error:
        sys.exit(_say(str(error), 1))
    except UserError as error:
        sys.exit(_say(one_line(error), 2))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_say(explain(error), 2))
    except KeyboardInterrupt:
        sys.exit(_say("stopped; the same command goes on where this one was", 130))
    except Exception as error:
        if error.__cause__ is not None and is_composition_error(error.__cause__):
            sys.exit(_say(explain(error.__cause__), 2))
        raise
    if _LAST.get("status") in _CODES:
        sys.exit(_say(str(_LAST.get("message")), _CODES[_LAST["status"]]))


_LAST: dict[str, Any] = {}
_CODES = {"refused": 2, "failed": 1}


def _hydra_main() -> None:
    import hydra

    register_schema()
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()


def _asks_for_mode() -> bool:
    flags = ("-m", "--multirun", "-c", "--cfg", "--help", "-h", "--info", "-i", "--hydra-help", "-sc")
    return any(word.split("=")[0] in flags for word in sys.argv[1:])


def _say(line: str, code: int) -> int:
    print(f"lorax: {line}", file=sys.stderr)
    return code


def _provenance(hydra: Any) -> dict[str, Any]:
    launcher = str(hydra.launcher.get("_target_", "")).rsplit(".", 1)[-1]
    return {"launcher": launcher or None, "overrides": list(hydra.overrides.task)}


if __name__ == "__main__":
    main()
