"""`python -m lorax.tables audit=<name>`: every check over one name, as text or JSON, and the lines below a report."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from typing import Any

from lorax.errors import UserError
from lorax.records import RunRecord, Store
from lorax.reports.audit import (
    anchored,
    circumstances,
    copies,
    counts,
    evidence,
    items,
    printed,
    registered,
    siblings,
)
from lorax.reports.audit.case import LEVELS, Case, Finding, counted
from lorax.reports.verify import Verified, verified_records
from lorax.studies.registration import frozen, frozen_path
from lorax.studies.study import Study, read_study


@dataclass(frozen=True)
class Audited:
    """What an audit of one name found."""

    name: str
    records: int
    scored: int
    """Runs with a test score that rows rest on or are shown beside them; of a sweep all."""
    chain: int
    """Lines of the chain; 0: there is none."""
    anchor: str | None
    """The commit that the chain names first."""
    asked_git: bool
    findings: tuple[Finding, ...]
    """The gravest first."""

    def of(self, level: str) -> list[Finding]:
        """Return the findings of one level."""
        return [one for one in self.findings if one.level == level]

    @property
    def breaks(self) -> bool:
        """Whether anything breaks the evidence."""
        return bool(self.of("breaks"))

    def summary(self) -> str:
        """Return one line: what was looked at, and how much was found."""
        found = [counted(len(self.of(level)), word) for level, word in
                 (("breaks", "finding"), ("warning", "warning")) if self.of(level)]  # fmt: skip
        chain = f"chain of {counted(self.chain, 'line')}" if self.chain else "no chain"
        anchor = ", no anchor" if self.chain else ""
        if self.anchor:
            anchor = f", anchor {self.anchor[:12]}" + ("" if self.asked_git else " (git was not asked)")
        state = "the evidence is broken" if self.breaks else "it holds together"
        return (
            f"{counted(self.records, 'record')}, {self.scored:,} scored on test, {chain}{anchor}: "
            f"{' and '.join(found) or 'nothing found'}, {state}"
        )

    def lines(self) -> list[str]:
        """Return a line for each finding, then the summary."""
        return [*(one.line() for one in self.findings), self.summary()]


def audit_text(store: Store, name: str, as_json: bool = False) -> tuple[str, bool]:
    """Audit a name, or every name for `all`; return the text, and whether nothing breaks the evidence.

    Raises:
        UserError: there is nothing of that name.
    """
    names = sorted({*store.names(), *_designs(store)}) if name == "all" and "all" not in store.names() else [name]
    audited = [audit(store, each) for each in names]
    whole = not any(one.breaks for one in audited)
    if as_json:
        return json.dumps([_plain(one) for one in audited], indent=1) + "\n", whole
    return "".join(f"{one.name}: {line}\n" for one in audited for line in one.lines()), whole


def audit(store: Store, name: str, study: Study | None = None, git: bool = True) -> Audited:
    """Make every check over a name; nothing is changed.

    Args:
        store: where the records are.
        name: of a study, or of other runs.
        study: as `read_study` returns it, where the caller has read it.
        git: whether to ask git, and to compare the printed table; a report, which is being printed, does not.

    Raises:
        UserError: there is nothing of that name.
    """
    if not store.folder(name).is_dir() and frozen_path(store.root, name).is_file():
        verified: Verified | None = None
        records: list[RunRecord] = []  # registered, no run yet
    else:
        verified, records = verified_records(store, name)
    case = Case(store, name, records, study or _study(store, name, bool(records)))
    if verified is not None:
        evidence.check(case, verified)
    registered.check(case)
    answers = items.read(case, case.ended)
    items.check(case, answers)
    copies.check(case, answers)
    counts.check(case)
    circumstances.check(case)
    siblings.check(case)
    if git:
        printed.check(case)
        anchored.check(case)
    findings = sorted(dict.fromkeys(case.findings), key=lambda one: LEVELS.index(one.level))
    files = len(list(store.folder(name).glob("*.json")))
    return Audited(name, files, len(case.scored), len(case.chain), next(iter(case.anchors), None), git, tuple(findings))


_SHOWN = 3
"""Findings of one level and kind at the foot of a report; the command shows all."""


def foot(store: Store, study: Study) -> list[str]:
    """Return what stands at the foot of a study's report: one line where nothing was found, else a line a finding."""
    found = audit(store, study.spec.name, study, git=False)
    alike: dict[tuple[str, str], list[Finding]] = {}
    for one in found.findings:
        if one.level != "note":
            alike.setdefault((one.level, one.kind), []).append(one)
    lines = []
    for (level, kind), some in alike.items():
        lines += [one.line() for one in some[:_SHOWN]]
        if len(some) > _SHOWN:
            lines.append(f"{level}: {kind}: {len(some) - _SHOWN} more like these")
    return [*lines, f"{found.summary()} (`python -m lorax.tables audit={found.name}` shows all, and asks git)."]


def _study(store: Store, name: str, begun: bool) -> Study | None:
    """Read the study of a name; None where none was registered, or its file is damaged (`verify` says so)."""
    if not begun or not frozen_path(store.root, name).is_file():
        return None
    try:
        spec = frozen(store.root, name)
    except UserError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is left out is a finding of `verify`
        return read_study(spec, store, items=False)


def _designs(store: Store) -> list[str]:
    folder = store.root / "studies"
    return [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.json")]


def _plain(one: Audited) -> dict[str, Any]:
    return {**asdict(one), "breaks": one.breaks}
