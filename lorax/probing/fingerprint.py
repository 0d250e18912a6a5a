"""Digests of tensors and of what a cached result depends on: they name the entries of the cache."""

from __future__ import annotations

import hashlib
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_STRETCH = 1 << 14  # 64-bit words hashed at a time: they fit into a core's cache

_seen: dict[int, tuple[Callable[[], Tensor | None], Any, str]] = {}


def key_of(*parts: Any) -> str:
    """Return the digest that names an entry computed from `parts`, values whose repr determines them."""
    return hashlib.sha256("\x1f".join(repr(part) for part in parts).encode()).hexdigest()[:40]


def fingerprint(tensor: Tensor) -> str:
    """Return a 128-bit digest of a tensor's dtype, shape and values; not secure against forgery.

    All weights of a model are digested before each cached start. sha256 would be five times slower where the
    processor has no instruction for it. So each 64-bit word is mixed with keys that depend on its position, the mixed
    words of each stretch are summed, and the sums are digested by blake2b.
    """
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    whole = len(raw) // 8 * 8
    words = raw[:whole].view(np.uint64)
    sums = np.empty(-(-len(words) // _STRETCH), np.uint64)
    for number in range(len(sums)):
        stretch = words[number * _STRETCH : (number + 1) * _STRETCH]
        mask, first, second = _keys()[:, : len(stretch)]
        mixed = (stretch ^ mask) * first
        mixed ^= mixed >> np.uint64(32)
        mixed *= second
        sums[number] = mixed.sum()
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.blake2b(head + raw[whole:].tobytes() + sums.tobytes(), digest_size=16).hexdigest()


def remembered(tensor: Tensor, read: Callable[[], Tensor] | None = None) -> str:
    """Return `fingerprint(tensor)`, computed again only if the tensor may have changed.

    K runs on one base would otherwise read every weight K times. A change is noticed by the address, by
    torch's version counter, or, for a write through `.data`, by a sample of a thousand values.

    Args:
        tensor: what may change.
        read: returns what is digested, made from the tensor, such as a dequantised weight; None: the tensor itself.
    """
    state = tuple(_state(part) for part in _parts_of(tensor))
    holder, known, result = _seen.get(id(tensor), (lambda: None, None, ""))
    if holder() is not tensor or known != state:
        result, key = fingerprint(tensor if read is None else read()), id(tensor)
        _seen[key] = (weakref.ref(tensor, lambda _: _seen.pop(key, None)), state, result)
    return result


def _state(tensor: Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().contiguous().view(-1)
    sample = flat[:: max(1, flat.numel() // 1000)].clone(memory_format=torch.contiguous_format)
    return (tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, tensor.stride(), fingerprint(sample))


def _parts_of(tensor: Any) -> list[Tensor]:
    """Return the plain tensors that a tensor subclass wraps, which has no memory of its own; else the tensor."""
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    return [part for name in flatten(tensor)[0] for part in _parts_of(getattr(tensor, name))]


@cache
def _keys() -> np.ndarray:
    """Return a mask and two odd multipliers for each position of a stretch, always the same."""
    keys = np.random.Generator(np.random.PCG64(0x10AA)).integers(2**64, size=(3, _STRETCH), dtype=np.uint64)
    keys[1:] |= np.uint64(1)
    return keys


def digest(value: Any) -> str:
    """Return a digest of nested mappings and sequences of tensors, numbers and strings (batches).

    Raises:
        TypeError: a value of another kind.
    """
    return hashlib.sha256("\x1f".join(_walk(value)).encode()).hexdigest()[:40]


def _walk(value: Any) -> Iterable[str]:
    if isinstance(value, Tensor):
        yield fingerprint(value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield f"{key}="
            yield from _walk(value[key])
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}"
        for item in value:
            yield from _walk(item)
    elif value is None or isinstance(value, str | int | float | bool):
        yield repr(value)
    else:
        raise TypeError(f"{type(value).__name__} has no digest")


assert sys.byteorder == "little", "safetensors and these digests are little-endian"
