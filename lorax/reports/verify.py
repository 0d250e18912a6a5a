"""`python -m lorax.tables verify=<name>`: what is not as it was written, and what is left over.

Checked for every record: its file is one, nothing in it changed since (its own digest, where it has one; older ones
have none), its id is that of its identity, its scores are the means of its items, its items are those it was written
with. Beside them: the digest of a design, curves that two seeds share, and what killed processes left.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorax.errors import UserError, near
from lorax.records import Damaged, RunRecord, Store, canonical
from lorax.records.claims import try_acquire
from lorax.records.fields import method, settings
from lorax.records.integrity import ITEMS, disagreement, means_of, read_record, why_not_believed
from lorax.records.journal import SUFFIX
from lorax.records.writing import PART, remove
from lorax.studies.registration import frozen, frozen_path


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    """record | score | design | duplicate | leftover."""
    file: str
    """Relative to the results folder."""
    text: str


@dataclass
class Verified:
    """What was looked at under one name, and what was found."""

    name: str
    records: int = 0
    without_digest: int = 0
    """Records from before records held digests: an edit shows only where it contradicts id or items."""
    without_items: int = 0
    """Records with a score and no items: it cannot be computed again."""
    findings: list[Finding] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return a line for each finding, then one on what was looked at."""
        lines = [f"{self.name}: {one.kind}: {one.file}: {one.text}" for one in self.findings]
        checked = f"{self.name}: {self.records} records, {len(self.findings) or 'no'} findings"
        if self.without_digest:
            checked += f"; {self.without_digest} are from before digests: checked by id and items"
        if self.without_items:
            checked += f"; {self.without_items} have no items: their scores cannot be computed again"
        return [*lines, checked]


def verify_text(store: Store, name: str, as_json: bool = False) -> tuple[str, bool]:
    """Return what `verify` found under a name, or under every name for `all`, as text; and whether it found nothing.

    Raises:
        UserError: there are no such records.
    """
    names = store.names() if name == "all" and "all" not in store.names() else [name]
    verified = [verify(store, each) for each in names]
    clean = not any(one.findings for one in verified)
    if as_json:
        return json.dumps([asdict(one) for one in verified], indent=1) + "\n", clean
    return "".join(f"{line}\n" for one in verified for line in one.lines()), clean


def verify(store: Store, name: str) -> Verified:
    """Look at everything of one name; nothing is changed.

    Raises:
        UserError: there are no such records.
    """
    return verified_records(store, name)[0]


def verified_records(store: Store, name: str) -> tuple[Verified, list[RunRecord]]:
    """Do what `verify` does; return the records that may be believed as well."""
    folder = store.folder(name)
    if not folder.is_dir():
        raise UserError(f"no records called {name!r} in {store.root}; {near(name, store.names())}")
    result, records = Verified(name), []

    def add(kind: str, path: Path, text: str) -> None:
        result.findings.append(Finding(kind, str(path.relative_to(store.root)), text))

    for path in sorted(folder.glob("*.json")):
        result.records += 1
        try:
            record = read_record(path)
            reason = why_not_believed(record, path, name)
        except Damaged as error:
            add("record", path, str(error).removeprefix(f"{path}: "))
            continue
        if reason is not None:
            add("record", path, reason)
            continue
        records.append(record)
        result.without_digest += record.items_digest is None
        items = store.items(record)
        result.without_items += not items and any(record.scores.values())
        reason = disagreement(record, means_of(items))
        if reason is not None:
            add("score", path, reason)
    if frozen_path(store.root, name).is_file():
        try:
            frozen(store.root, name)
        except UserError as error:
            add("design", frozen_path(store.root, name), str(error).removeprefix(f"{frozen_path(store.root, name)}: "))
    for one, other in _twins(records):
        add(
            "duplicate", store.path(name, other.run_id), f"the curve of seed {_seed(one)}, run {one.run_id}, to the bit"
        )
    for path, text in _left_over(store, name, {record.run_id for record in records if record.status != "failed"}):
        add("leftover", path, text)
    return result, records


def _twins(records: list[RunRecord]) -> Iterator[tuple[RunRecord, RunRecord]]:
    """Yield pairs of trained runs of one method whose seeds differ and whose curves do not."""
    by_curve: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        losses = [row.get("loss") for row in record.curve]
        if len(losses) > 1 and any(loss is not None for loss in losses[1:]):
            by_curve[canonical([method(record), losses])].append(record)
    for same in by_curve.values():
        for other in same[1:]:
            if _seed(other) != _seed(same[0]):
                yield same[0], other


def _seed(record: RunRecord) -> object:
    return settings(record).get("seed")


def _left_over(store: Store, name: str, over: set[str]) -> Iterator[tuple[Path, str]]:
    """Yield what lies about: temporary files, locks and checkpoints of runs that are over, items without a record."""
    folder, state = store.folder(name), store.root / "state" / name
    for place in (folder, store.root / "tables", store.root / "studies", store.root / "figures" / name):
        yield from ((path, "a file that was never finished") for path in sorted(place.glob(f".*{PART}")))
    for path in sorted(folder.glob(f"*{ITEMS}")):
        if not path.with_name(path.name.removesuffix(ITEMS) + ".json").exists():
            yield path, "items without a record"
    for path in sorted(state.iterdir()) if state.is_dir() else []:
        run = path.name.removesuffix(".lock")
        if path.suffix == SUFFIX:
            yield path, "records of a pack that was killed while it wrote them; the same command finishes them"
        elif run in over:
            yield path, "of a run that is over; the next command of this name removes it"
        elif path.is_dir() and _is_free(state / f"{run}.lock"):
            yield path, "of a run that was stopped; the same command goes on"


def _is_free(lock: Path) -> bool:
    """Return whether no process works on a run; leaves no file that was not there."""
    there = lock.exists()
    held = try_acquire(lock)
    if held is not None:
        held.release()
        if not there:
            remove(lock)
    return held is not None
