"""Which code judges: a number that is raised by hand, and a digest of the code itself."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

ANALYSIS = 1
"""Raised when the same records would get another choice, interval or verdict; a registration holds it."""
_JUDGES = ("stats", "studies")
"""The rooms whose code chooses rates and gives verdicts."""


@cache
def analysis() -> dict[str, Any]:
    """Return version and digest of the code that judges, as a registration holds them."""
    total, package = hashlib.sha256(), Path(__file__).parents[1]
    for room in _JUDGES:
        for path in sorted((package / room).rglob("*.py")):
            total.update(f"{path.relative_to(package).as_posix()}\0".encode())
            total.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return {"version": ANALYSIS, "code": total.hexdigest()[:16]}
