"""Dropout masks from hashed counters: drawn where they are used, for all lanes at once, from one number a lane.

    byte(key, row, token, column) = a byte of mix(key + row G0 + token G1 + (column // 8) G2)      mod 2^64

`mix` is two rounds of (low half ^= high half; times an odd constant) and a last xor, as in MurmurHash3's and
SplitMix64's finalisers. A byte is one mask entry, so p is quantised to q / 256 and kept entries are scaled by exactly
256 / (256 - q). An entry depends on its own place and its lane's key alone: a run has the same masks alone, in a pack,
and however far its rows are padded. On a CPU it costs a sixth to a tenth of Bernoulli draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from lorax.errors import UserError


def _signed(number: int) -> int:
    """Return a number mod 2^64 as int64 holds it."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


_ROUNDS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
_COLUMN = 0x9E3779B97F4A7C15
_PLACES = (0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3)
"""Odd numbers without a pattern, one for each dimension before the columns."""


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


@lru_cache(maxsize=8192)
def key(*parts: Any) -> int:
    """Return 64 bits, as int64 holds them, that these parts alone decide: a run's seed, its step, a layer's name.

    Examples:
        >>> key(0, 1) == key(0, 1), key(0, 1) == key(1, 0)
        (True, False)
    """
    words = "\0".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(words, digest_size=8).digest(), "little", signed=True)


def from_row(lane_key: int, row: int) -> int:
    """Return the key under which row 0 has the mask that `row` has under a lane's key; see `draw`.

    Examples:
        >>> whole = draw((3, 2, 8), torch.tensor([5]))
        >>> bool((draw((2, 2, 8), torch.tensor([from_row(5, 1)])) == whole[:, 1:]).all())
        True
    """
    return _signed(lane_key + row * _PLACES[0])


def draw(shape: tuple[int, ...], keys: Tensor) -> Tensor:
    """Return random bytes, (K, *shape); an entry below q is dropped, which happens with probability q / 256.

    Args:
        shape: of one lane's mask: up to four dims before the columns.
        keys: (K,) int64, on the device where to draw.
    """
    places, columns = _counters(shape[:-1], shape[-1], keys.device)
    words = (keys[:, None, None] + columns) + places
    low, high = words.view(torch.int32).unflatten(-1, (-1, 2)).unbind(-1)
    for odd in _ROUNDS:
        low ^= high
        words *= odd
    low ^= high
    drawn = words.view(torch.uint8)[..., : shape[-1]]
    return drawn.unflatten(1, shape[:-1]) if len(shape) > 1 else drawn.squeeze(1)


@lru_cache(maxsize=256)
def _counters(leading: tuple[int, ...], columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what a place adds to the counter, (places, 1), and what eight columns add, (words,)."""
    with torch.inference_mode(False), torch.no_grad():
        places = torch.zeros((), dtype=torch.int64, device=device)
        for size, odd in zip(leading, _PLACES, strict=False):
            places = places[..., None] + torch.arange(size, device=device) * _signed(odd)
        return places.reshape(-1, 1), torch.arange((columns + 7) // 8, device=device) * _signed(_COLUMN)


def kept(drawn: Tensor, q: int | Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask, 1 where an entry stays and 0 where it is dropped.

    In the dtype of the products: boolean masks take several times longer on a CPU.

    Args:
        drawn: random bytes, of any shape.
        q: bytes below it are dropped; a tensor that broadcasts, where lanes differ.
        dtype: of the mask.
    """
    return torch.ge(drawn, q, out=torch.empty(drawn.shape, dtype=dtype, device=drawn.device))


def below(qs: Sequence[int], device: torch.device) -> int | Tensor:
    """Return the q of some lanes as `kept` takes it for masks (K, T, n): one number where all agree."""
    return qs[0] if len(set(qs)) == 1 else _column(tuple(qs), device)


@lru_cache(maxsize=256)
def _column(qs: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(qs, dtype=torch.uint8, device=device)[:, None, None]
