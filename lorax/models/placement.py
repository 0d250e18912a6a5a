"""Where a model's weights are, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorax.errors import UserError, near

if TYPE_CHECKING:
    import torch

STORED_AS = {"bf16-autocast": "float32"}
"""Precisions whose weights are kept in another one; all others name a torch dtype."""


def pick_device(device: str) -> str:
    """Return the device for "auto": cuda, else mps, else cpu.

    Raises:
        UserError: a device that is not there.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(device.split(":")[0], False):
        names = ", ".join(name for name, there in available.items() if there)
        raise UserError(f"device={device}: not available; there is {names}")
    return device


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of the weights; `bf16-autocast` keeps them in float32.

    Raises:
        UserError: no such floating point dtype.
    """
    import torch

    options = ("float32", "bfloat16", "float16", "float64", *STORED_AS)
    if name not in options:
        raise UserError(f"dtype={name}: {near(name, options)}")
    return getattr(torch, STORED_AS.get(name, name))
