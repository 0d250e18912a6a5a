"""The log of a run: always plain files, and W&B beside them, offline unless the user asks for online."""

from __future__ import annotations

import csv
import http.client
import io
import json
import logging
import math
import os
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from lorax.errors import UserError, near
from lorax.records import Unwritable, write_atomic

MODES = ("offline", "online", "none")
_ENVIRONMENT = {"dryrun": "offline", "run": "online", "disabled": "none"}
_warned: set[str] = set()


class Tracker:
    """One run's log.

    In `folder`: config.yaml, metrics.jsonl (a line a step), summary.json, one CSV a table, and with
    W&B its own folder `wandb/`. Several trackers may be open at once, one for each run of a pack. No error
    of W&B stops a run, and no folder that cannot be written: the record holds all of it.

    Args:
        folder: the run's output folder; None: nothing is written.
        config: the resolved configuration, plain values.
        mode: offline | online | none; `$WANDB_MODE` decides between the first two, or opts out.
        project: W&B project.
        name: the run's name in W&B.
        group: W&B's group of runs: the name of their study or grid.
        tags: W&B tags.
    """

    def __init__(
        self,
        folder: Path | str | None,
        config: Mapping[str, Any],
        *,
        mode: str = "offline",
        project: str = "lorax",
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
    ):
        import yaml

        self.folder = None if folder is None else Path(folder)
        self._metrics: TextIO | None = None
        self._open = True
        text = yaml.safe_dump(plain(config), sort_keys=False)
        self._to_files(lambda place: write_atomic(place / "config.yaml", text))
        self._to_files(self._open_metrics)
        self._summary: dict[str, Any] = {}
        self.mode = effective_mode(mode, os.environ) if self.folder is not None else "none"
        self.run: Any = None
        if self.mode != "none" and self.folder is not None:
            project = os.environ.get("WANDB_PROJECT", project)
            facts = {"project": project, "name": name, "group": group, "tags": list(tags), "config": plain(config)}
            self.mode, self.run = _open(self.mode, self.folder, facts)

    def log(self, row: Mapping[str, float]) -> None:
        """Add one step: a mapping with `step` and numbers."""
        values = plain(row)
        self._to_files(lambda _: self._write_line(json.dumps(values) + "\n"))
        shown = {f"train/{key}": value for key, value in values.items() if key != "step" and value is not None}
        self._to_wandb(lambda run: run.log(shown, step=int(row["step"])))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as `<name>.csv` and as a W&B table; columns are those of the first row."""
        columns, text = list(rows[0]) if rows else [], io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        self._to_files(lambda place: write_atomic(place / f"{name}.csv", text.getvalue()))
        if rows:
            data = [[plain(row.get(column)) for column in columns] for row in rows]
            self._to_wandb(lambda run: run.log({name: _wandb().Table(columns=columns, data=data)}))

    def images(self, paths: Mapping[str, Path | str]) -> None:
        """Add pictures by name, to W&B only: they are files already."""
        if paths:
            self._to_wandb(lambda run: run.log({name: _wandb().Image(str(path)) for name, path in paths.items()}))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final values: scores, costs."""
        self._summary |= plain(values)
        text = json.dumps(self._summary, indent=1) + "\n"
        self._to_files(lambda place: write_atomic(place / "summary.json", text))
        self._to_wandb(lambda run: run.summary.update(self._summary))

    def finish(self, status: str = "finished") -> None:
        """Close the log; may be called twice."""
        if not self._open:
            return
        self.summary({"status": status})
        self._open = False
        if self._metrics is not None:
            with suppress(OSError):
                self._metrics.close()
        self._to_wandb(lambda run: run.finish(exit_code=1 if status == "failed" else 0))
        self.run = None

    def _open_metrics(self, place: Path) -> None:
        self._metrics = (place / "metrics.jsonl").open("w", encoding="utf-8", buffering=1)

    def _write_line(self, line: str) -> None:
        if self._metrics is not None:
            self._metrics.write(line)

    def _to_files(self, action: Callable[[Path], Any]) -> None:
        """Write something to the folder, if there is one; where that fails, say so and write nothing more there."""
        if self.folder is None:
            return
        try:
            action(self.folder)
        except (OSError, Unwritable) as error:
            _warn(f"{self.folder}: {getattr(error, 'strerror', None) or error}; the log ends here, the run goes on")
            self.folder = None

    def _to_wandb(self, action: Callable[[Any], Any]) -> None:
        """Do something with the W&B run, if there is one; after an error go on without it."""
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:  # whatever W&B raises must not stop a run
            self.run = None
            _warn(f"W&B: {error}; logging on in plain files only")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish("finished" if kind is None else "failed")


def effective_mode(mode: str, environment: Mapping[str, str]) -> str:
    """Return offline, online or none: `none` opts out, else `$WANDB_MODE` decides, else `mode`.

    Raises:
        UserError: an unknown mode, with the near misses.

    Examples:
        >>> effective_mode("offline", {}), effective_mode("offline", {"WANDB_MODE": "disabled"})
        ('offline', 'none')
        >>> effective_mode("none", {"WANDB_MODE": "online"})
        'none'
    """
    if mode not in MODES:
        raise UserError(f"track={mode}: {near(mode, MODES)}")
    asked = environment.get("WANDB_MODE", "").lower()
    asked = _ENVIRONMENT.get(asked, asked)
    return mode if mode == "none" or asked not in MODES else asked


def reachable(url: str, seconds: float = 3.0) -> bool:
    """Return whether a host answers a request (through the proxy, if one is set) within `seconds`.

    An open port is not enough: a filtering network may accept a connection and never answer. The request is
    made in a thread, because looking up a host name has no time limit.
    """
    answered: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)  # an error page is an answer
        except (OSError, ValueError, http.client.HTTPException):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answered)


def plain(value: Any) -> Any:
    """Return a value that JSON and YAML take: mappings, lists, texts, finite numbers, None.

    Examples:
        >>> plain({"a": (1, float("nan")), 2: Path("x")})
        {'a': [1, None], '2': 'x'}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _open(mode: str, folder: Path, facts: dict[str, Any]) -> tuple[str, Any]:
    """Start a W&B run; where online fails take offline, and where that fails the plain files, with one warning each."""
    try:
        wandb = _wandb()
    except ImportError:
        _warn("W&B is not installed: curves are in plain files only")
        return "none", None
    logging.getLogger("wandb").setLevel(logging.ERROR)
    if mode == "online" and (reason := _obstacle(wandb)):
        _warn(f"W&B online: {reason}; logging offline (`wandb sync` uploads later)")
        mode = "offline"
    for attempt in dict.fromkeys([mode, "offline"]):
        try:
            return attempt, _init(wandb, attempt, folder, facts)
        except Exception as error:  # whatever W&B raises must not stop a run
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            after = "offline" if attempt == "online" else "in plain files only"
            _warn(f"W&B {attempt}: {line}; logging {after}")
    return "none", None


def _wandb() -> Any:
    import wandb

    return wandb


def _init(wandb: Any, mode: str, folder: Path, facts: dict[str, Any]) -> Any:
    settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, init_timeout=15)
    return wandb.init(mode=mode, dir=str(folder), reinit="create_new", settings=settings, **facts)


def _obstacle(wandb: Any) -> str | None:
    """Return why an online run would block or ask for input, or None if it would not."""
    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    try:
        url = wandb.api.settings("base_url") or url
        key = wandb.api.api_key
    except Exception:  # an unreadable settings file or netrc: as if there were none
        key = os.environ.get("WANDB_API_KEY")
    if not key:
        return "no API key (WANDB_API_KEY or `wandb login`)"
    return None if reachable(url) else f"{urlsplit(url).hostname} cannot be reached"


def _warn(line: str) -> None:
    if line not in _warned:
        _warned.add(line)
        warnings.warn(line, stacklevel=3)
