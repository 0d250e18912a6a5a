"""A content-addressed store of decompositions: computed once, read in slices by every method and rank.

An entry is one safetensors file of matrices stored by rows, with a checksum per row. So a reader can take the top 8
vectors without reading the rest, and still notices a damaged file. Keys are digests of what an entry was computed
from, so an entry never changes and never becomes invalid.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorax.errors import UserError
from lorax.records.writing import PART, sweep_once, temporary_prefix

DEFAULT_BYTES = 8 * 2**30
_LOCKS = 64  # lock files in all; two keys may share one, then one of them waits

Parts = dict[str, Tensor]
"""The tensors of an entry, by name."""


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def _size(text: str) -> int:
    """Return the bytes that a text names: a whole number, or a number with k, M, G or T (1024 of the one before).

    Raises:
        UserError: the text is no size.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None or ("." in match[1] and not match[2]):
        raise UserError(
            f"LORAX_CACHE_BYTES={text}: a number of bytes is needed, or one with a unit, such as 8G or 500M"
        )
    return int(float(match[1]) * _UNITS[match[2]])


class Cache:
    """Entries under a folder, or in memory. Processes may share it; damaged entries are computed again.

    Args:
        dir: folder, made when first needed; None keeps the entries of this process in memory.
        max_bytes: once the store is larger, the least recently used entries are removed.
    """

    def __init__(self, dir: str | os.PathLike[str] | None, max_bytes: int = DEFAULT_BYTES) -> None:
        """Open the store; nothing is written yet."""
        self.dir = None if dir is None else Path(dir)
        self.max_bytes = max_bytes
        self._memory: OrderedDict[str, Parts] = OrderedDict()
        self._total: int | None = None
        self._lock = threading.Lock()  # several layers may use the store at once

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the lock, which cannot be copied."""
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, with a new lock."""
        vars(self).update(state, _lock=threading.Lock())

    @classmethod
    def default(cls) -> Cache:
        """Return the user's cache: `$LORAX_CACHE` or the platform's folder, up to `$LORAX_CACHE_BYTES`."""
        from platformdirs import user_cache_dir

        root = os.environ.get("LORAX_CACHE") or user_cache_dir("lorax")
        return cls(Path(root) / "probing", _size(os.environ.get("LORAX_CACHE_BYTES", str(DEFAULT_BYTES))))

    def get(self, key: str, compute: Callable[[], Parts], rows: slice = slice(None)) -> Parts:
        """Return the entry's tensors, each cut to `rows`; computed and stored if it is missing or damaged.

        Args:
            key: hexadecimal digest of everything that the entry depends on.
            compute: returns CPU tensors whose first dimension the slice cuts.
            rows: which rows are wanted.
        """
        if self.dir is None:
            return _cut(self._remembered(key, compute), rows)
        path = self.dir / key[:2] / f"{key}.safetensors"
        parts = _read(path, rows)
        if parts is not None:
            return parts
        computed: Parts | None = None
        try:
            (self.dir / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self.dir / "locks" / f"{int(key[:8], 16) % _LOCKS}.lock"):
                parts = _read(path, rows)  # another process may have written it meanwhile
                if parts is not None:
                    return parts
                computed = compute()
                self._store(path, computed)
        except OSError as error:
            warnings.warn(f"cache {self.dir}: {error.strerror or error}; going on without it", stacklevel=2)
        return _cut(compute() if computed is None else computed, rows)

    def has(self, key: str) -> bool:
        """Return whether there is such an entry (reading it may still show that it is damaged)."""
        if self.dir is None:
            return key in self._memory
        return (self.dir / key[:2] / f"{key}.safetensors").exists()

    def _remembered(self, key: str, compute: Callable[[], Parts]) -> Parts:
        parts = self._memory.get(key)
        if parts is None:
            parts = compute()
        with self._lock:
            self._memory[key] = parts
            self._memory.move_to_end(key)
            while len(self._memory) > 1 and sum(map(_bytes, self._memory.values())) > self.max_bytes:
                self._memory.popitem(last=False)
        return parts

    def _store(self, path: Path, parts: Parts) -> None:
        """Write to a temporary file beside it, then rename: a reader sees a whole file or none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: part.contiguous() for name, part in parts.items()}
        tensors |= {f"{name}.sum": _checksums(part) for name, part in tensors.items()}
        sweep_once(path.parent.absolute())
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(".entry"), suffix=PART)
        os.close(handle)
        try:
            try:
                save_file(tensors, name)
            except SafetensorError as error:  # raised for a full disk, among others
                raise OSError(str(error).split(": ", 1)[-1]) from error
            os.replace(name, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)
        with self._lock:
            if self._total is None:
                self._total = sum(size for _, size, _ in self._entries())
            else:
                self._total += _bytes(tensors)
            if self._total > self.max_bytes:
                self._evict(keep=path)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return (last use, bytes, path) of every entry, oldest first."""
        entries = []
        for path in [] if self.dir is None else self.dir.glob("??/*"):
            with suppress(FileNotFoundError):  # another process may evict at the same time
                stat = path.stat()
                entries.append((stat.st_mtime, stat.st_size, path))
        return sorted(entries)

    def _evict(self, keep: Path) -> None:
        """Remove the least recently used entries down to nine tenths of the bound."""
        entries = self._entries()
        self._total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._total <= 0.9 * self.max_bytes:
                return
            if path != keep:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    self._total -= size


def _read(path: Path, rows: slice) -> Parts | None:
    """Return the wanted rows; None where there is no entry or a damaged one, which is removed."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith(".sum")]  # noqa: SIM118 (no mapping)
            parts = {name: file.get_slice(name)[rows] for name in names}
            for name in names:
                if not torch.equal(_checksums(parts[name]), file.get_slice(f"{name}.sum")[rows]):
                    raise ValueError("checksum")
        with suppress(OSError):
            os.utime(path)  # marks the entry as used
        return parts
    except Exception:  # a damaged file makes the reader raise errors of many types
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None


def _checksums(part: Tensor) -> Tensor:
    """Return one int64 per row: the sum of its 32-bit words."""
    return part.contiguous().view(len(part), -1).view(torch.int32).sum(dim=1, dtype=torch.int64)


def _cut(parts: Parts, rows: slice) -> Parts:
    return {name: part[rows] for name, part in parts.items()}


def _bytes(parts: Parts) -> int:
    return sum(part.numel() * part.element_size() for part in parts.values())
