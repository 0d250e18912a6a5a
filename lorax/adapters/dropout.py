"""Dropout masks from random bytes: three times cheaper than Bernoulli draws on a CPU.

A byte is one mask entry, so p is quantised to q / 256 and kept entries are scaled by
exactly 256 / (256 - q).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lorax.errors import UserError


def quantise(p: float) -> int:
    """Return q, the number of the 256 byte values that drop an entry; 0 only for p = 0.

    Raises:
        UserError: p outside [0, 1).

    Examples:
        >>> quantise(0.0), quantise(0.05), quantise(0.5), quantise(0.999)
        (0, 13, 128, 255)
    """
    if not 0.0 <= p < 1.0:
        raise UserError(f"dropout={p}: must be at least 0 and below 1")
    return 0 if p == 0.0 else min(max(round(256 * p), 1), 255)


def scale(q: int) -> float:
    """Return the factor on kept entries, 1 / (1 - q / 256)."""
    return 256.0 / (256 - q)


def draw(shape: tuple[int, ...], seed: int, device: torch.device, width: int | None = None) -> Tensor:
    """Return random bytes; an entry below q is dropped, which happens with probability q / 256.

    Args:
        shape: shape of the mask.
        seed: the bytes depend on seed, shape and the kind of device only.
        device: where to draw.
        width: draw as if dim 1 had this size; entries beyond it (padding to other lanes) are never dropped.
    """
    if width is not None and width < shape[1]:
        narrow = draw((shape[0], width, *shape[2:]), seed, device)
        return F.pad(narrow, [0, 0] * (len(shape) - 2) + [0, shape[1] - width], value=255)
    count = 1
    for size in shape:
        count *= size
    generator = torch.Generator(device).manual_seed(seed)
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)  # the full range: by default the top bit stays 0
    return words.view(torch.uint8)[:count].view(shape)


def kept(drawn: Tensor, q: int, dtype: torch.dtype) -> Tensor:
    """Return the mask, 1 where an entry stays and 0 where it is dropped.

    In the dtype of the products: boolean masks take several times longer on a CPU.

    Args:
        drawn: random bytes, of any shape.
        q: bytes below it are dropped.
        dtype: of the mask.
    """
    return torch.ge(drawn, q, out=torch.empty(drawn.shape, dtype=dtype, device=drawn.device))
