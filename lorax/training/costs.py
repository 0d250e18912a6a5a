"""What a block of code costs: seconds and peak memory."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from pathlib import Path

import torch


class Meter:
    """Seconds and peak memory of the block inside `with`.

    On CUDA the peak is that of torch's allocator. Elsewhere it is the largest resident set of the process. Linux can
    reset that maximum, so the peak belongs to the block. Where it cannot be reset (macOS, some containers) it is the
    peak since the process began, an upper bound.

    Examples:
        >>> with Meter() as meter:
        ...     _ = torch.ones(10)
        >>> meter.seconds > 0 and meter.peak_mb > 0
        True
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.peak_mb = 0.0

    def __enter__(self) -> Meter:
        reset_peak(self.device)
        self._start = _now(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = _now(self.device) - self._start
        self.peak_mb = peak_mb(self.device)


def reset_peak(device: torch.device | str = "cpu") -> None:
    """Reset the peak of memory, where the system allows it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    _release_freed()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        pass  # no such file, or no right to write it: `peak_mb` is then that of the whole process


def peak_mb(device: torch.device | str = "cpu") -> float:
    """Return the peak memory since the last reset, in MB (1e6 bytes)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _release_freed() -> None:
    """Return freed memory to the system, so that a run's peak does not include what an earlier run has freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc only
    if trim is not None:
        trim(0)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
