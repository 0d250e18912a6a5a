"""The table that was printed: whether it says what the records give."""

from __future__ import annotations

from lorax.reports.audit.case import Case
from lorax.reports.main_table import main_table
from lorax.reports.text.cells import to_csv
from lorax.studies.study import read_study


def check(case: Case) -> None:
    """Compare a finished study's CSV file with the one that its records give now.

    The other formats hold the same numbers in words and are not compared: whoever doubts them draws them again.
    """
    study, path = case.study, case.store.root / "tables" / f"{case.name}.csv"
    if study is None or not study.complete or not path.is_file():
        return
    if study.spec.procedure != "paired_t":  # the items decide there, and an audit reads a study without them
        study = read_study(study.spec, case.store)
    if path.read_text(errors="replace") != to_csv(main_table(study)):
        text = "not what the records give: edited, or of another version of the code; "
        text += f"`python -m lorax.tables {case.name}` draws it again"
        case.add("warning", "table", text, path)
