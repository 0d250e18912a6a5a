"""Which run is meant, and where its adapter lies. Torch-free until the adapter's header is read."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorax.errors import UserError, near
from lorax.records import RunRecord, Store, run_id
from lorax.records.fields import method

_DIGITS = re.compile(r"[0-9a-f]{16}")
_SHORTEST = 4
"""Digits by which a run may be called."""


@dataclass(frozen=True)
class SavedRun:
    """A finished run and its saved adapter."""

    store: Store
    record: RunRecord
    folder: Path
    """Of the adapter."""
    header: dict[str, Any]
    """Of the adapter, checked."""


def find(word: str, store: Store) -> SavedRun:
    """Return the run that a word names.

    Args:
        word: a run id, its first digits, `<name>/<run id>`, or the folder of a saved adapter.
        store: of the records.

    Raises:
        UserError: no such run or folder, several that begin like this, one that failed or saved no adapter, or an
            adapter that is no run's of this store.
    """
    if word and (folder := Path(word).expanduser()).is_dir():
        return _in_folder(folder, store)
    records = [store.get(name, run) for name, run in _called(word, store)]
    known = [record for record in records if record is not None]
    for record in known:
        if (place := record.provenance.get("saved")) is not None and Path(place).is_dir():
            return SavedRun(store, record, Path(place), _header(Path(place), record))
    raise UserError(_why_not(known[0]))


def _in_folder(folder: Path, store: Store) -> SavedRun:
    from lorax.adapters.files.reading import read_header

    header = read_header(folder)
    runs = _runs(store)
    for run in (run_id(header["info"]), folder.resolve().name):
        for name in runs.get(run, ()):
            if (record := store.get(name, run)) is not None:
                return SavedRun(store, record, folder, _header(folder, record))
    raise UserError(
        f"{folder}: no run of {store.root}/records saved this adapter, so there is nothing to say about it: "
        "results_dir=<folder>; an adapter of your own loop: adapters.export_peft(<folder>)"
    )


def _header(folder: Path, record: RunRecord) -> dict[str, Any]:
    """Return the header of an adapter; refuse what is no adapter."""
    from lorax.adapters.files.reading import read_header

    header = read_header(folder)
    if header["kind"] != "adapter":
        raise UserError(f"run {record.run_id}: init={method(record)} has no form in PEFT: it trains no adapter")
    return header


def _called(word: str, store: Store) -> list[tuple[str, str]]:
    """Return (name, run id) of the one run that a word names; it may have records under several names."""
    name, slash, digits = word.rpartition("/")
    runs = {run: names for run, names in _runs(store).items() if not slash or name in names}
    found = [digits] if digits in runs else [run for run in runs if run.startswith(digits) and len(digits) >= _SHORTEST]
    if len(found) > 1:
        raise UserError(f"{word}: {len(found)} runs begin like this: {', '.join(sorted(found)[:4])}")
    if not found:
        everything = [*_runs(store), *(store.names() if slash else ())]
        raise UserError(
            f"{word}: no such run in {store.root}/records, and no folder; "
            + (near(digits, everything) if everything else "there are no records")
        )
    return [(each, found[0]) for each in runs[found[0]] if not slash or each == name]


def _runs(store: Store) -> dict[str, list[str]]:
    """Return {run id: names under which it has a record}."""
    runs: dict[str, list[str]] = {}
    for name in store.names():
        for path in store.folder(name).glob("*.json"):
            if _DIGITS.fullmatch(path.stem):
                runs.setdefault(path.stem, []).append(name)
    return runs


def _why_not(record: RunRecord) -> str:
    """Return why a run has no adapter to push, and how to get one."""
    told = f"run {record.run_id} ({record.name}, init={method(record)})"
    if record.status == "failed":
        return f"{told} failed: {record.error}"
    if record.costs.get("trainable") == 0:
        return f"{told} trains nothing: there is no adapter"
    if (place := record.provenance.get("saved")) is not None:
        return f"{told}: its adapter was saved in {place}, which is not there; give the folder in its place"
    if (error := record.provenance.get("save_error")) is not None:
        return f"{told} could not save its adapter ({error}); run it under another name with save=<folder>"
    words = [word for word in record.provenance.get("overrides") or () if not word.startswith(("name=", "save="))]
    again = shlex.join(["python", "-m", "lorax.run", *words, f"name={record.name}_saved"])
    return f"{told} saved no adapter; under another name it is trained again: {again} save=<folder>"
