"""Where a figure was measured: processor, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy")
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def facts() -> dict[str, Any]:
    """Return machine, versions, commit and time."""
    import torch

    return {
        "processor": _processor(),
        "units": _units(),
        "cores": os.cpu_count(),
        "memory_gb": round(_memory() / 1e9, 1),
        "threads": torch.get_num_threads(),
        "openmp": {key: value for key, value in sorted(os.environ.items()) if key.startswith(("OMP_", "GOMP_"))},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _processor() -> str:
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _units() -> list[str]:
    flags = set(_cpuinfo().split())
    return [unit for unit in UNITS if unit in flags]


def _memory() -> int:
    import psutil

    return psutil.virtual_memory().total


def _commit() -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
