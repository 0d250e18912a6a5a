"""The registration and its chain: whether design, records, order and dates are those that were entered."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

from lorax.records import RunRecord
from lorax.records.chain import Entry, chain_path
from lorax.records.record import digest_of
from lorax.reports.audit.case import Case, counted, listed
from lorax.studies.analysis import analysis
from lorax.studies.registration import digest, frozen_path

_APART = timedelta(hours=1)
"""How far a record's own date may lie from that of its line: diagnostics run between the two."""
_CLOCKS = timedelta(minutes=10)
"""How far clocks of several machines may differ."""
_IDLE = timedelta(days=30)
"""A design that waits longer for its first run has a date that nothing bears out."""


def check(case: Case) -> None:
    """Compare design, chain, records and dates."""
    chained = [record for record in case.records if record.provenance.get("chain")]
    _dates(case)
    if not case.chain:
        if not case.registered:
            return
        if chained or "chain" in case.registered:
            whose = counted(len(chained), "record") if chained else "the registration"
            case.add("breaks", "chain", f"{whose} named a chain, and there is none: it was removed")
        else:
            fixed = case.registered.get("fixed")
            what = f"its date, {fixed}, rests on that file alone" if fixed else "it holds no date"
            case.add(
                "warning", "chain", f"registered before the chain existed: {what}, the order of runs on their dates"
            )
        return
    _lines(case)
    _design(case)
    _records(case)
    _heads(case)


def _lines(case: Case) -> None:
    """Look whether each line fits the one before, and whether time goes on."""
    path = chain_path(case.store.root, case.name)
    unfit = [line.number for line in case.chain if not line.fits]
    if unfit:
        case.add(
            "breaks",
            "chain",
            f"line {listed(unfit)} does not name the line before: a line was changed or left out",
            path,
        )
    if case.chain[0].kind != "design" or any(line.kind == "design" for line in case.chain[1:]):
        case.add("breaks", "chain", "a design that is not the first line, or a first line that is no design", path)
    for before, after in zip(case.chain, case.chain[1:], strict=False):
        first, second = _time(before.at), _time(after.at)
        if first and second and second < first - _CLOCKS:
            case.add("breaks", "dates", f"line {after.number} is of {after.at}, the line before of {before.at}", path)
    late = [line for line in case.chain if line.facts.get("late")]
    if late:
        text = f"{counted(len(late), 'record')} entered when the study was started again, not when they were written"
        case.add("warning", "chain", f"{text}: of a killed process, or put there by hand")
    begun = [line for line in case.chain if line.kind == "start"]
    if begun:
        case.add(
            "note", "chain", f"the study went on {counted(len(begun), 'time')} with other code or on another machine"
        )


def _design(case: Case) -> None:
    """Compare the registration with the chain's first line."""
    first, path = case.chain[0], frozen_path(case.store.root, case.name)
    if not case.registered:
        case.add("breaks", "design", "there is a chain and no design: the file that fixed it was removed", path)
        return
    if case.registered.get("chain") != first.digest:
        case.add("breaks", "chain", "the registration names another first line: one of the two was written anew", path)
    now = case.registered.get("digest") if case.study is None else digest(case.study.spec)
    entered = first.facts.get("design")
    if now != entered:
        text = f"registered as {entered}, now it is {now}: margin, seeds, arms or tuning were changed since"
        case.add("breaks", "design", text, path)
    if case.registered.get("fixed") != first.at:
        text = f"fixed={case.registered.get('fixed')}, but the chain began at {first.at}"
        case.add("breaks", "dates", text, path)
    judged, today = first.facts.get("analysis"), analysis()
    judged = judged if isinstance(judged, dict) else {}
    if judged.get("version") != today["version"]:
        text = f"registered under analysis version {judged.get('version')}, judged by {today['version']}"
        case.add("warning", "analysis", text)
    elif judged.get("code") != today["code"]:
        text = f"the code of stats and studies has changed since the registration, at version {today['version']} still"
        case.add("note", "analysis", text)


def _records(case: Case) -> None:
    """Compare the records with their lines."""
    lines: dict[str, list[Entry]] = defaultdict(list)
    for line in case.chain:
        if line.kind == "record":
            lines[str(line.facts.get("run"))].append(line)
    folder = case.store.folder(case.name)
    there = {path.stem for path in folder.glob("*.json")}
    for run, of_run in lines.items():
        ended = [line for line in of_run if line.facts.get("status") != "failed"]
        if run not in there and ended:
            facts, last = ended[-1].facts, ended[-1]
            seed = None if facts.get("seed") is None else f"seed {facts['seed']}"
            score = facts.get("test")
            test = f"{100 * score:.1f} % on test" if isinstance(score, int | float) else None
            what = listed(filter(None, (facts.get("label"), seed, facts.get("tag"), test)))
            case.add(
                "breaks", "dropped",
                f"run {run} ({what}) finished as line {last.number}, {last.at}, and has no record",
            )  # fmt: skip
        scores = {str(line.facts.get("test")) for line in ended}
        if len(ended) > 1:
            numbers = listed(line.number for line in ended)
            same = "with the same test score" if len(scores) == 1 else f"with test scores {listed(sorted(scores))}"
            text = f"run {run} finished {len(ended)} times, lines {numbers}, {same}: its record was taken away between"
            case.add("warning" if len(scores) == 1 else "breaks", "chain", text)
    for record in case.records:
        where = case.store.path(case.name, record.run_id)
        of_run = lines.get(record.run_id, [])
        if not of_run:
            text = "finished and was never entered: put there, or of a killed process (its next start enters it)"
            case.add("breaks", "chain", text, where)
            continue
        if of_run[-1].facts.get("record") != digest_of(record):
            case.add("breaks", "record", f"not as it was entered in line {of_run[-1].number} of the chain", where)
        finished, at = _time(str(record.provenance.get("finished") or "")), _time(of_run[-1].at)
        if finished and at and not of_run[-1].facts.get("late") and abs(at - finished) > _APART:
            text = f"it says that it finished at {record.provenance['finished']}, its line is of {of_run[-1].at}"
            case.add("breaks", "dates", text, where)


def _heads(case: Case) -> None:
    """Look whether each record names a line of this chain: the last one when its run began."""
    places = {line.digest: line.number for line in case.chain}
    last = {str(line.facts.get("run")): line.number for line in case.chain if line.kind == "record"}
    named = [record for record in case.records if record.provenance.get("chain")]
    wrong = [
        record
        for record in named
        if places.get(str(record.provenance["chain"]), len(case.chain)) >= last.get(record.run_id, len(case.chain) + 1)
    ]
    if wrong:
        text = f"{counted(len(wrong), 'record')} name a line that the chain does not have before theirs"
        text += f" ({wrong[0].run_id} ...)"
        case.add("breaks", "chain", f"{text}: it was written anew")
    if bare := len(case.records) - len(named):
        early = [record for record in case.records if not record.provenance.get("chain")]
        text = (
            f"{counted(bare, 'record')} name no line of the chain ({early[0].run_id} ...): made before it, or by hand"
        )
        case.add("warning", "chain", text)


def _dates(case: Case) -> None:
    """Look whether the date of the registration can be true beside those of the runs."""
    fixed = _time(str(case.registered.get("fixed") or ""))
    if fixed is None:
        return
    path = frozen_path(case.store.root, case.name)
    if fixed > datetime.now(UTC) + _CLOCKS:
        case.add("breaks", "dates", f"fixed={case.registered['fixed']}: that day is still to come", path)
    starts = {record.run_id: _started(record) for record in case.ended}
    times = sorted(time for time in starts.values() if time)
    early = sum(time < fixed for time in times)
    if early:
        text = f"{early:,} of {counted(len(times), 'run')} had started when the design was fixed"
        case.add("warning", "dates", f"{text}, {case.registered['fixed']}")
    elif times and times[0] - fixed > _IDLE:
        text = (
            f"fixed={case.registered['fixed']}, {(times[0] - fixed).days:,} days before the first run: "
            "anybody can write that date, and nothing bears it out"
        )
        case.add("warning", "dates", text, path)


def _started(record: RunRecord) -> datetime | None:
    return _time(str(record.provenance.get("started") or record.provenance.get("finished") or ""))


def _time(text: str) -> datetime | None:
    """Read a date as records hold it; None where it is none. Without a zone it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
