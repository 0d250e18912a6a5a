"""The design of a study: fixed in a file before its first run, and read back from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.records import canonical, check_name, read_json, write_atomic
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


def freeze(spec: StudySpec, results_dir: str | Path) -> Path:
    """Fix the design before the first run; later calls check that it is still the same.

    The file also holds the time, so that a report can state whether any run had started before.

    Raises:
        UserError: the study was fixed with another design; names the first value that differs and the file.
    """
    path = frozen_path(results_dir, spec.name)
    if path.is_file():
        old, new = _design(frozen(results_dir, spec.name)), _design(spec)
        for key in sorted(old.keys() | new.keys()):
            if canonical(old.get(key)) != canonical(new.get(key)):
                was, given = _difference(old.get(key), new.get(key))
                raise UserError(
                    f"study {spec.name}: {key} was fixed as {was} before the first run and is now {given} "
                    f"({path}); give the changed study another name"
                )
    since = fixed_at(results_dir, spec.name) if path.is_file() else datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"digest": digest(spec), "fixed": since, "spec": spec.plain()}, indent=1) + "\n"
    if not path.is_file() or path.read_text() != text:
        write_atomic(path, text)
    return path


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
