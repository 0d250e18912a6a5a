"""The records of a study sorted to its jobs; nothing else is remembered between rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lorax.records import RunRecord
from lorax.records.staleness import fresh
from lorax.studies.jobs import Job, answers, make_job
from lorax.studies.spec import StudySpec


class Book:
    """Finds the record of a job. Failed runs are no records; stale ones are named and left out."""

    def __init__(self, spec: StudySpec, records: Iterable[RunRecord]):
        over = [record for record in records if record.status in ("finished", "diverged")]
        kept, self.stale = fresh(over, spec.consumes.values())
        """run id -> why it is left out."""
        self.spec = spec
        self.used: set[str] = set()
        self._shelf: dict[Any, list[RunRecord]] = defaultdict(list)
        for record in sorted(kept, key=lambda one: one.run_id):
            self._shelf[_place(record)].append(record)
        self._all = kept

    def find(self, arm: str, task: str, stage: str, lr: float | None, seed: int) -> RunRecord | None:
        """Return the record of a job, or None."""
        return self.look(make_job(self.spec, arm, task, stage, lr, seed))

    def look(self, job: Job) -> RunRecord | None:
        """Return the record that answers a job, or None."""
        for place in (job.seed, None):
            for record in self._shelf.get((place, job.settings["evaluate"]), ()):
                if answers(record, job):
                    self.used.add(record.run_id)
                    return record
        return None

    def unasked(self) -> list[RunRecord]:
        """Return the fresh records that no job has asked for so far."""
        return [record for record in self._all if record.run_id not in self.used]


def _place(record: RunRecord) -> Any:
    """Shelf of a record: the seed and the split that it consumed."""
    source: Mapping[str, Any] = record.identity if "init" in record.identity else record.config
    return source.get("seed"), source.get("evaluate")
