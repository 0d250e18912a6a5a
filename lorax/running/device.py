"""On which device and in which precision a run computes."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lorax.errors import UserError


@dataclass(frozen=True)
class Placement:
    """Device and precision, resolved."""

    dtype: str
    """float32 | bf16-autocast | bfloat16 | float16 | float64: part of the run's identity."""
    weights: str
    """dtype of the frozen base."""
    autocast: str | None
    """dtype of the products under autocast, or None."""
    device: str
    """cpu, cuda, cuda:1, mps."""

    def facts(self) -> dict[str, Any]:
        """Return what the record's provenance says of the machine."""
        import torch

        cuda = self.device.startswith("cuda")
        return {
            "device": torch.cuda.get_device_name() if cuda else self.device,
            "processor": processor(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }


@cache
def processor() -> str:
    """Return the processor's model, or what the system says of it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    with suppress(OSError, subprocess.SubprocessError):
        words = ["sysctl", "-n", "machdep.cpu.brand_string"]  # macOS
        said = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        if said:
            return said
    return platform.processor() or platform.machine()


def resolve_placement(dtype: str, device: str) -> Placement:
    """Resolve `dtype` and `device`.

    `auto` is a bfloat16 base on a GPU, where its weights fill the memory (what trains is fp32 all the same); bf16
    autocast over a float32 base on a CPU that multiplies bf16 natively; else float32.

    Raises:
        UserError: the device is not there.
    """
    dtype, autocast = resolve_dtype(dtype, device), None
    weights = dtype
    if dtype == "bf16-autocast":
        weights, autocast = "float32", "bfloat16"
    return Placement(dtype, weights, autocast, resolve_device(device))


def resolve_device(device: str) -> str:
    """Return the device that `auto` means here, or the given one if it exists."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        if not cuda or index >= torch.cuda.device_count():
            raise UserError(f"device={device}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device == "mps" and not mps:
        raise UserError("device=mps: not available on this machine")
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """Return the precision that `auto` means here, or the given one."""
    if dtype != "auto":
        return dtype
    import torch

    device = resolve_device(device)
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16-autocast" if device == "cpu" and _multiplies_bf16() else "float32"


def _multiplies_bf16() -> bool:
    """Return whether this CPU has bf16 products of its own; emulated ones are slower than float32."""
    import torch

    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in checks if check is not None)
