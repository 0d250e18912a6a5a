"""Marian's binary model file: names, shapes and values of its tensors, int8 matrices with their scale. Torch-free.

    u64 version 1, u64 n
    n times   u64 bytes of the name, u64 type, u64 dimensions, u64 bytes of the data
    the names (each ends in a zero byte), the shapes (i32), u64 bytes of padding, the padding, the data

An int8 matrix is followed by its scale as fp32: value = int8 / scale. All but the embedding are stored transposed.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from lorax.errors import UserError

FLOAT32, INT8 = 0x404, 0x4101
"""Types of tensors: fp32, and int8 as intgemm multiplies it."""
EMBEDDING = "Wemb"


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Return {name: tensor} in fp32: matrices (out, in), the embedding (V, d), vectors (n,).

    Numbers by which the engine quantises activations (`*_QuantMultA`) and the settings (`special:model.yml`) are left
    out.

    Args:
        path: the file.

    Raises:
        UserError: not such a file, another version of it, or cut short.
    """
    raw = path.read_bytes()
    try:
        return _tensors(raw)
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no model file of Marian's ({str(error).splitlines()[0][:80]})") from None


def _tensors(raw: bytes) -> dict[str, np.ndarray]:
    version, count = struct.unpack_from("<QQ", raw, 0)
    if version != 1:
        raise ValueError(f"version {version}, not 1")
    place = 16 + 32 * count
    headers = [struct.unpack_from("<QQQQ", raw, 16 + 32 * number) for number in range(count)]
    names, shapes = [], []
    for length, *_ in headers:
        names.append(raw[place : place + length - 1].decode())
        place += length
    for _, _, dimensions, _ in headers:
        shapes.append(struct.unpack_from(f"<{dimensions}i", raw, place))
        place += 4 * dimensions
    (padding,) = struct.unpack_from("<Q", raw, place)
    place += 8 + padding
    tensors = {}
    for name, shape, (_, kind, _, size) in zip(names, shapes, headers, strict=True):
        if not name.startswith("special:") and not name.endswith("_QuantMultA"):
            tensors[name] = _tensor(raw, place, name, shape, kind)
        place += size
    if place != len(raw):
        raise ValueError(f"{len(raw):,} bytes, its header says {place:,}")
    return tensors


def _tensor(raw: bytes, place: int, name: str, shape: tuple[int, ...], kind: int) -> np.ndarray:
    size = int(np.prod(shape))
    if kind == FLOAT32:
        return np.frombuffer(raw, "<f4", size, place).reshape(-1 if shape[0] == 1 else shape).copy()
    if kind != INT8:
        raise ValueError(f"{name} has type {kind:#x}")
    (scale,) = struct.unpack_from("<f", raw, place + size)
    stored = shape if name == EMBEDDING else shape[::-1]
    return np.frombuffer(raw, "i1", size, place).reshape(stored).astype(np.float32) / np.float32(scale)
