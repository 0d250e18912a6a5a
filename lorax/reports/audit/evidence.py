"""Each record by itself: its digest, its id, its scores from its items; and what lies about."""

from __future__ import annotations

from pathlib import Path

from lorax.reports.audit.case import Case, counted
from lorax.reports.verify import Verified

_LEVELS = {"record": "breaks", "score": "breaks", "design": "breaks", "duplicate": "breaks", "leftover": "note"}


def check(case: Case, verified: Verified) -> None:
    """Take over what `verify` found."""
    for one in verified.findings:
        kind = {"duplicate": "copies"}.get(one.kind, one.kind)
        case.add(_LEVELS[one.kind], kind, one.text, case.store.root / Path(one.file))
    if verified.without_items:
        case.add(
            "warning",
            "items",
            f"{counted(verified.without_items, 'scored record')} without items: nothing to score again",
        )
    if verified.without_digest:
        case.add(
            "note", "record",
            f"{counted(verified.without_digest, 'record')} from before records held a digest: checked by id and items",
        )  # fmt: skip
