"""The design of a study: fixed in a file before its first run, and read back from it.

`studies/<name>.json` holds the design, its digest, when it was fixed and where its chain begins;
`studies/<name>.chain.jsonl` is that chain (`records.chain`): design, code, machine, then every record.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.records import canonical, check_name, read_json, write_atomic
from lorax.records.chain import Entry, append, chain_lock, chain_path, read_chain
from lorax.studies.analysis import analysis
from lorax.studies.parse import from_mapping
from lorax.studies.spec import WHEN_ABSENT, StudySpec


def frozen_path(results_dir: str | Path, name: str) -> Path:
    """Return the file that fixes a study's design.

    Raises:
        UserError: the name would leave the results folder.
    """
    return Path(results_dir) / "studies" / f"{check_name(name)}.json"


def digest(spec: StudySpec) -> str:
    """Return the digest of everything that is fixed before the first run."""
    return hashlib.sha256(canonical(_design(spec)).encode()).hexdigest()[:16]


def freeze(
    spec: StudySpec, results_dir: str | Path, made_with: Mapping[str, Any] | None = None, anchor: str | None = None
) -> Path:
    """Fix the design before the first run and begin its chain; later calls check that it is still the same.

    The file also holds the time, so that a report can state whether any run had started before. A study that was fixed
    before there were chains gets none.

    Args:
        spec: the study, bound.
        results_dir: where records and tables are.
        made_with: commit, dirty and machine of this command; the chain holds them, and says where they change.
        anchor: a commit of the user's repository that holds this registration; the chain names it from now on.

    Raises:
        UserError: the study was fixed with another design; names the first value that differs and the file. Or the
            anchor is no commit's name.
    """
    path, root = frozen_path(results_dir, spec.name), Path(results_dir)
    if anchor is not None and not re.fullmatch(r"[0-9a-f]{7,64}", anchor):
        raise UserError(f"study.anchor={anchor}: the name of a commit is needed, 7 to 64 hexadecimal digits")
    if path.is_file():
        old, new = _design(frozen(results_dir, spec.name)), _design(spec)
        for key in sorted(old.keys() | new.keys()):
            if canonical(old.get(key)) != canonical(new.get(key)):
                was, given = _difference(old.get(key), new.get(key))
                raise UserError(
                    f"study {spec.name}: {key} was fixed as {was} before the first run and is now {given} "
                    f"({path}); give the changed study another name"
                )
    with chain_lock(root, spec.name):
        written = read_json(path) if path.is_file() else {}
        chain = _chain(spec, root, dict(made_with or {}), anchor, written)
        since = written.get("fixed") if written else chain[0].at
        begins = {"chain": chain[0].digest} if chain else {}
        stored = {"digest": digest(spec), "fixed": since, **begins, "spec": spec.plain()}
        text = json.dumps(stored, indent=1) + "\n"
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text)
    return path


def _chain(
    spec: StudySpec, root: Path, made_with: dict[str, Any], anchor: str | None, registered: Mapping[str, Any]
) -> list[Entry]:
    """Begin a study's chain, or enter what is new about this command; return its lines."""
    path = chain_path(root, spec.name)
    lines = read_chain(path)
    if lines and not registered and all(line.kind != "record" for line in lines):  # taken back before its first run
        path.unlink()
        lines = []
    if registered and "chain" not in registered and not lines:
        if anchor is not None:
            raise UserError(f"study.anchor={anchor}: {spec.name} was fixed before there were chains and has none")
        return []
    code = {"analysis": analysis(), **made_with}
    new: list[dict[str, Any]] = []
    if not lines:
        new.append({"kind": "design", "study": spec.name, "design": digest(spec), **code})
    elif lines[0].facts.get("design") != digest(spec):
        raise UserError(
            f"study {spec.name}: its chain began with design {lines[0].facts.get('design')}, now it is {digest(spec)} "
            f"({path}); give the changed study another name"
        )
    else:
        last = next((line.facts for line in reversed(lines) if line.kind in ("design", "start")), {})
        if canonical({key: last.get(key) for key in code}) != canonical(code):
            new.append({"kind": "start", **code})
    if anchor is not None and not any(line.facts.get("commit") == anchor for line in lines if line.kind == "anchor"):
        new.append({"kind": "anchor", "commit": anchor})
    append(path, new)
    return read_chain(path)


def fixed_at(results_dir: str | Path, name: str) -> str | None:
    """Return when a study's design was fixed, ISO 8601 UTC; None where that was not written down."""
    path = frozen_path(results_dir, name)
    data = read_json(path) if path.is_file() else None
    return data.get("fixed") if isinstance(data, dict) else None


def estimand_of(results_dir: str | Path, name: str) -> str | None:
    """Return the estimand of a study whose design was fixed; None where there is none.

    A study that was started before the estimand had a key goes on with what its design stands for.
    """
    return frozen(results_dir, name).estimand if frozen_path(results_dir, name).is_file() else None


def frozen(results_dir: str | Path, name: str) -> StudySpec:
    """Read back a study whose design was fixed, bindings included.

    Raises:
        UserError: there is none, or the file was changed by hand.
    """
    path = frozen_path(results_dir, name)
    if not path.is_file():
        raise UserError(f"no study {name!r} has been started in {results_dir} (no {path})")
    try:
        data = read_json(path)
        plain = data["spec"]
        bindings = {key: plain.pop(key) for key in ("centres", "matched", "consumes")}
        spec = replace(from_mapping(WHEN_ABSENT | plain, name), **bindings)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a fixed study ({error})") from None
    if digest(spec) != data["digest"]:
        raise UserError(f"{path}: its content does not have its digest {data['digest']}; it was changed by hand")
    return spec


def _design(spec: StudySpec) -> dict[str, Any]:
    plain = spec.design()
    plain.pop("consumes")
    return plain


def _difference(old: Any, new: Any) -> tuple[str, str]:
    """Return the first entry in which two values differ, as short texts."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            if canonical(old.get(key)) != canonical(new.get(key)):
                was, now = _difference(old.get(key), new.get(key))
                return f"{key}={was}", f"{key}={now}"
    short = [text if len(text) <= 120 else text[:117] + "..." for text in (canonical(old), canonical(new))]
    return short[0], short[1]
