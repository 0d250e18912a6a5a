"""What git knows: commits of the code, and whether a commit of the user's repository holds the registration."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import lorax
from lorax.records.chain import chain_path, entries
from lorax.reports.audit.case import Case, counted, listed
from lorax.studies.registration import frozen_path

_CLOCKS = timedelta(minutes=10)
_VERSIONS = 50
"""Versions of a file that are looked at, the newest first."""


def check(case: Case) -> None:
    """Ask git about the code's commits, the registration's history and its anchor."""
    _code(case)
    if not case.registered:
        return
    anchors = case.anchors
    repository = _top(case.store.root)
    if repository is None:
        if anchors:
            text = f"anchor {anchors[0][:12]} cannot be checked: {case.store.root} lies in no git repository"
            case.add("warning", "anchor", text)
    else:
        for anchor in anchors:
            _anchor(case, repository, anchor)
        _history(case, repository)
    if not anchors:
        case.add("note", "anchor", "no anchor: every date here is by the clock and the files of whoever ran the study")


def _code(case: Case) -> None:
    """Look whether the commits that records name are those of the code's repository, and older than their runs."""
    package = Path(lorax.__file__).parents[1]
    repository = _top(package)
    named = Counter(str(commit) for record in case.ended if (commit := record.provenance.get("commit")))
    if repository != package.resolve():
        if named:
            case.add("note", "commits", "the code is no git checkout: whether there are such commits is not looked at")
        return
    unknown = [commit for commit in named if _commit(repository, commit) is None]
    if unknown:
        n = sum(named[commit] for commit in unknown)
        text = f"{counted(n, 'record')} of commits that the code's repository does not know"
        case.add("warning", "commits", f"{text}: {listed(commit[:9] for commit in unknown)}")
    for record in case.ended:
        made = _commit(repository, str(record.provenance.get("commit") or ""))
        started = _time(record.provenance.get("started"))
        if made and started and started < made - _CLOCKS:
            case.add(
                "breaks", "dates",
                f"it says that it started at {record.provenance['started']}; its commit "
                f"{str(record.provenance['commit'])[:9]} is of {made.isoformat()}",
                case.store.path(case.name, record.run_id),
            )  # fmt: skip
    first = case.chain[0] if case.chain else None
    made = _commit(repository, str(first.facts.get("commit") or "")) if first else None
    if first and made and (at := _time(first.at)) and at < made - _CLOCKS:
        commit = str(first.facts["commit"])[:9]
        text = f"the chain began at {first.at} with commit {commit}, which is of {made.isoformat()}"
        case.add("breaks", "dates", text)


def _anchor(case: Case, repository: Path, anchor: str) -> None:
    """Compare design and chain with what a commit of the user's repository holds."""
    made = _commit(repository, anchor)
    if made is None:
        shallow = _git(repository, "rev-parse", "--is-shallow-repository") == b"true\n"
        level = "warning" if shallow else "breaks"
        case.add(
            level, "anchor", f"{anchor[:12]} is no commit of {repository}" + (" (a shallow clone)" if shallow else "")
        )
        return
    raw = _file(repository, anchor, frozen_path(case.store.root, case.name))
    if raw is None:
        case.add("breaks", "anchor", f"commit {anchor[:12]} does not hold the registration")
        return
    if _digest(raw) != case.registered.get("digest"):
        text = f"commit {anchor[:12]} holds design {_digest(raw)}, the study has {case.registered.get('digest')}"
        case.add("breaks", "anchor", text)
        return
    path = chain_path(case.store.root, case.name)
    then = _file(repository, anchor, path) or b""
    if not path.read_bytes().startswith(then):
        case.add("breaks", "anchor", f"commit {anchor[:12]} holds another chain: it was written anew since")
        return
    over = sum(line.kind == "record" for line in entries(then))
    scored = sum(line.kind == "record" and line.facts.get("test") is not None for line in entries(then))
    text = f"commit {anchor[:12]} of {made.isoformat()} holds the design"
    if scored:
        case.add("warning", "anchor", f"{text}, but {counted(scored, 'run')} had been scored on test by then")
    else:
        text = f"{text}, when {over or 'no'} runs were over and none scored on test"
        case.add("note", "anchor", f"{text}; what that date is worth is what others know of the commit")


def _history(case: Case, repository: Path) -> None:
    """Look whether git holds other versions of the design, or a chain that today's does not go on from."""
    design, path = frozen_path(case.store.root, case.name), chain_path(case.store.root, case.name)
    for commit in _versions(repository, design):
        raw = _file(repository, commit, design)
        if raw is not None and (was := _digest(raw)) not in (None, case.registered.get("digest")):
            text = f"commit {commit[:9]} holds design {was}, now it is {case.registered.get('digest')}"
            case.add("breaks", "design", f"{text}: {_changed(raw, case)}", design)
    now = path.read_bytes() if path.is_file() else b""
    for commit in _versions(repository, path):
        raw = _file(repository, commit, path)
        if raw is not None and not now.startswith(raw):
            case.add("breaks", "chain", f"commit {commit[:9]} holds another chain: it was written anew since", path)


def _changed(raw: bytes, case: Case) -> str:
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        was, now = json.loads(raw)["spec"], case.registered["spec"]
        keys = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
        short = [f"{key}={was.get(key)}" if len(str(was.get(key))) <= 40 else key for key in keys]
        return f"{listed(short)} then"
    return "it cannot be read"


def _digest(raw: bytes) -> str | None:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(raw)["digest"])
    return None


def _versions(repository: Path, path: Path) -> list[str]:
    said = _git(repository, "log", f"-{_VERSIONS}", "--format=%H", "--", str(path.resolve()))
    return (said or b"").decode().split()


def _file(repository: Path, commit: str, path: Path) -> bytes | None:
    """Return a file as a commit holds it, or None."""
    with suppress(ValueError):
        place = path.resolve().relative_to(repository).as_posix()
        return _git(repository, "show", f"{commit}:{place}")
    return None


@cache
def _commit(repository: Path, name: str) -> datetime | None:
    """Return when a commit was made; None where the repository does not have it."""
    if not name or name.startswith("-"):
        return None
    said = _git(repository, "log", "-1", "--format=%cI", f"{name}^{{commit}}", "--")
    return None if said is None else _time(said.decode().strip())


def _top(folder: Path) -> Path | None:
    """Return the top of the git repository that a folder lies in."""
    said = _git(folder, "rev-parse", "--show-toplevel")
    return None if said is None else Path(said.decode().strip()).resolve()


def _git(folder: Path, *words: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _time(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
