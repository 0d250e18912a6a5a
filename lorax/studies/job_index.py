"""The records of a study by the job that they answer; a study keeps no other state between rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from lorax.records import RunRecord
from lorax.records.fields import settings
from lorax.records.staleness import fresh
from lorax.studies.jobs import Job, answers
from lorax.studies.spec import StudySpec


class JobIndex:
    """Finds the record of a job. Failed runs do not count; stale ones are listed and left out."""

    def __init__(self, spec: StudySpec, records: Iterable[RunRecord]):
        ended = [record for record in records if record.status in ("finished", "diverged")]
        self.records, self.stale = fresh(ended, spec.consumes.values())
        """The fresh records; and run id -> why it is left out."""
        self._by_seed_and_split: dict[tuple[Any, Any], list[RunRecord]] = defaultdict(list)
        for record in sorted(self.records, key=lambda record: record.run_id):
            used = settings(record)
            self._by_seed_and_split[used.get("seed"), used.get("evaluate")].append(record)

    def find(self, job: Job) -> RunRecord | None:
        """Return the record that answers a job, or None; a run without a seed answers jobs of every seed."""
        for seed in (job.seed, None):
            for record in self._by_seed_and_split.get((seed, job.settings["evaluate"]), ()):
                if answers(record, job):
                    return record
        return None
