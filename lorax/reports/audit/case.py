"""What an audit looks at, and what it says."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.records import RunRecord, Store, read_json
from lorax.records.chain import Entry, chain_path, read_chain
from lorax.records.fields import method
from lorax.reports.frames.study import final_runs, test_scored
from lorax.studies.registration import frozen_path
from lorax.studies.study import Study

LEVELS = ("breaks", "warning", "note")
"""breaks: the evidence does not hold together. warning: a reader has to know it. note: for the sake of completeness."""


@dataclass(frozen=True)
class Finding:
    """One thing that an audit has to say."""

    level: str
    """One of `LEVELS`."""
    kind: str
    """record | score | design | chain | dates | dropped | copies | items | runs | siblings | commits | machine | ..."""
    text: str
    where: str = ""
    """A file, relative to the results folder, where one is at fault."""

    def line(self) -> str:
        """Return it as one line."""
        place = f"{self.where}: " if self.where else ""
        return f"{self.level}: {self.kind}: {place}{self.text}"


@dataclass
class Case:
    """Everything of one name."""

    store: Store
    name: str
    records: list[RunRecord]
    """Those that may be believed."""
    study: Study | None
    """None: no design was fixed, or its file is damaged."""
    findings: list[Finding] = field(default_factory=list)

    def add(self, level: str, kind: str, text: str, where: Path | None = None) -> None:
        """Note a finding."""
        place = "" if where is None else str(where.relative_to(self.store.root))
        self.findings.append(Finding(level, kind, text, place))

    @cached_property
    def registered(self) -> dict[str, Any]:
        """The registration's file; empty where there is none that can be read."""
        return read_design(self.store, self.name)

    @cached_property
    def anchors(self) -> list[str]:
        """The commits that the chain names as anchors."""
        return [str(line.facts.get("commit")) for line in self.chain if line.kind == "anchor"]

    @cached_property
    def chain(self) -> list[Entry]:
        """The lines of the chain."""
        return read_chain(chain_path(self.store.root, self.name))

    @cached_property
    def ended(self) -> list[RunRecord]:
        """Runs that are over."""
        return [record for record in self.records if record.status != "failed"]

    @cached_property
    def finals(self) -> list[RunRecord]:
        """What the rows rest on: each final run once; without a study every run with a test score."""
        if self.study is None:
            return [record for record in self.ended if record.score("test") is not None]
        return list({record.run_id: record for record in final_runs(self.study)}.values())

    @cached_property
    def scored(self) -> list[RunRecord]:
        """Every final run at any rate; each once."""
        if self.study is None:
            return self.finals
        return list({record.run_id: record for record in test_scored(self.study)}.values())

    @cached_property
    def arms(self) -> dict[str, str]:
        """Run id -> arm: as the study uses the run, else the run's label, else its method."""
        named = {record.run_id: record.label or method(record) for record in self.records}
        if self.study is not None:
            of_rates = [((task, arm), runs) for (task, arm, _), runs in self.study.runners_up.items()]
            of_rates += [(place, runs) for place, rates in self.study.windows.items() for runs in rates.values()]
            for (_, arm), runs in [*of_rates, *self.study.finals.items()]:
                named |= {record.run_id: arm for record in runs.values()}
        return named

    def arm(self, record: RunRecord) -> str:
        """Return the arm of a run."""
        return self.arms[record.run_id]


def read_design(store: Store, name: str) -> dict[str, Any]:
    """Return the file that fixes a design; empty where there is none, or none that can be read."""
    path = frozen_path(store.root, name)
    with suppress(UserError):
        data = read_json(path) if path.is_file() else {}
        return data if isinstance(data, dict) else {}
    return {}


def listed(values: Iterable[Any], most: int = 5) -> str:
    """Return `a, b, c ...`: the first values, and whether there are more.

    Examples:
        >>> listed([1, 2, 3], most=2)
        '1, 2 ...'
    """
    texts = [str(value) for value in values]
    return ", ".join(texts[:most]) + (" ..." if len(texts) > most else "")


def counted(number: int, noun: str) -> str:
    """Return `1 record`, `2 records`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
