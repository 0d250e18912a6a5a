"""Mid-run checkpoints: one file for each run, written whole or not at all, read without running pickled code.

A run resumes in the pack it was in, so all runs of a pack go on from one moment: while a pack writes its new files, the
ones before stay beside them, and where a kill left some new and some old, all take the old. A file ends in a digest of
its bytes: one that was changed, cut short or not written by this module is not used.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorax.errors import UserError
from lorax.records import write_together
from lorax.records.writing import remove, writing

VERSION = 3
_READ = (2, 3)
"""Version 2 held an optimiser's state in its own order, version 3 holds moments by name."""
_END = b"lorax checkpoint"
State = dict[str, Any]


def save_checkpoints(states: Sequence[tuple[Path, str, State]]) -> None:
    """Write the states of a pack's runs; a kill at any moment leaves all of one moment or all of the next.

    Args:
        states: for each run: its file; its fingerprint, which another run's state does not have; and its state,
            made of tensors, numbers, texts and mappings or lists of them, `step` among them.

    Raises:
        Unwritable: a file cannot be written; those before are still there.
    """
    pack = sorted(_short(fingerprint) for _, fingerprint, _ in states)
    moment = sum(int(state["step"]) for _, _, state in states)  # it grows as long as any run of the pack goes on
    files = [(path, _bytes(fingerprint, pack, moment, state)) for path, fingerprint, state in states]
    several = len(files) > 1  # of one file, the rename itself takes the old one's place
    for path, _ in files if several else []:
        if path.is_file():
            with writing(path):
                os.replace(path, before(path))
    write_together(files)
    for path, _ in files if several else []:
        remove(before(path))


def before(path: Path) -> Path:
    """Return where a run's last but one checkpoint stays while its pack writes new ones."""
    return path.with_name(f"{path.name}.before")


def load_checkpoint(path: Path, fingerprint: str) -> State | None:
    """Return a run's saved state, or None where there is none to continue from; see `load_checkpoints`."""
    return load_checkpoints([(path, fingerprint)])[0]


def load_checkpoints(runs: Sequence[tuple[Path | None, str]]) -> list[State | None]:
    """Return the states from which the runs of a pack go on, None where a run starts at its beginning.

    Runs that were written together go on together, from the newest moment of which all that are here have a file. Those
    that are over and recorded need none. A file that is damaged, or from another version or another run, is not used: a
    warning says so.

    Args:
        runs: for each its file (None: it keeps none) and its fingerprint.
    """
    found: list[dict[int, tuple[Path, State]]] = []
    problems: list[str | None] = []
    for path, fingerprint in runs:
        states, problem = ({}, None) if path is None else _read_both(path, fingerprint)
        found.append(states)
        problems.append(problem)
    names = [_short(fingerprint) for _, fingerprint in runs]
    chosen = [_newest_of_all(states, found, names) for states in found]
    for (path, _), states, problem, moment in zip(runs, found, problems, chosen, strict=True):
        if path is None:
            continue
        if problem is not None:
            _warn(f"{problem}: " + ("starting over" if moment is None else "going on from the one before"))
        elif states and moment is None and not any(problems):
            _warn(f"{path}: the others of its pack have no checkpoint of the same moment: starting over")
        if moment is not None:  # the next one to be written must find one file in its place
            if states[moment][0] == path:
                remove(before(path))
            else:
                os.replace(states[moment][0], path)
    return [None if m is None else states[m][1] for states, m in zip(found, chosen, strict=True)]


def _newest_of_all(
    states: dict[int, tuple[Path, State]], found: Sequence[dict[int, tuple[Path, State]]], names: Sequence[str]
) -> int | None:
    """Return the newest moment that every run here, of those that were written together with it, has too."""
    for moment in sorted(states, reverse=True):
        pack = states[moment][1]["pack"]
        others = [other for other, name in zip(found, names, strict=True) if name in pack]
        if all(moment in other and other[moment][1]["pack"] == pack for other in others):
            return moment
    return None


def _read_both(path: Path, fingerprint: str) -> tuple[dict[int, tuple[Path, State]], str | None]:
    """Return moment -> (file, state) of a run's checkpoint and of the one before, and what is wrong with the first."""
    states: dict[int, tuple[Path, State]] = {}
    problem = None
    for place in (path, before(path)):
        if not place.exists():
            continue
        try:
            state = _read(place, fingerprint)
            states.setdefault(state["moment"], (place, state))
        except UserError as error:
            problem = problem or str(error)
    return states, problem


def _read(path: Path, fingerprint: str) -> State:
    """Return the state in a file.

    Raises:
        UserError: it is damaged or another run's; the line names the file.
    """
    try:
        raw = path.read_bytes()
        if raw[-len(_END) :] != _END:
            raise ValueError("its end is missing, or it is no checkpoint")
        body, digest = raw[: -len(_END) - 32], raw[-len(_END) - 32 : -len(_END)]
        if hashlib.sha256(body).digest() != digest:
            raise ValueError("its bytes do not have their digest")
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        text = str(error) if type(error) is ValueError else type(error).__name__
        raise UserError(f"{path} cannot be read ({text})") from None
    if not isinstance(state, dict) or not {"version", "fingerprint", "pack", "moment", "step"} <= state.keys():
        raise UserError(f"{path} cannot be read (it holds no state of a run)")
    if state["version"] not in _READ or state["fingerprint"] != fingerprint:
        raise UserError(f"{path} belongs to another run")
    return state


def _bytes(fingerprint: str, pack: list[str], moment: int, state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save({"version": VERSION, "fingerprint": fingerprint, "pack": pack, "moment": moment, **state}, buffer)
    body = buffer.getvalue()
    return body + hashlib.sha256(body).digest() + _END


def _short(fingerprint: str) -> str:
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:32]


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=4)
