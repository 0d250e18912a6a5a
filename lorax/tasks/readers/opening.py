"""Files as text: the kind by the suffix in any case, unpacked where compressed, in UTF-8 or refused by the line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from lorax.errors import UserError, near

KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".txt": "tsv", ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".po": "po", ".mo": "mo",
}  # fmt: skip
"""Suffix, in any case -> how the file is read."""
PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes after the kind's own: `train.jsonl.gz`."""
_MAGIC = {
    b"\x1f\x8b": "packed with gzip", b"BZh": "packed with bzip2", b"\xfd7zXZ\0": "packed with xz",
    b"(\xb5/\xfd": "packed with zstandard", b"PAR1": "parquet", b"ARROW1": "arrow",
    b"PK\x03\x04": "an archive or a workbook (zip)",
}  # fmt: skip
"""First bytes of files that are no text -> what they are."""
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz")


def suffix_of(path: Path) -> str:
    """Return the suffix that says a file's kind, in lower case, that of compression aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""


def stem_of(path: Path) -> str:
    """Return a file's name without its kind's suffix and that of compression."""
    name = path.name
    if path.suffix.lower() in PACKED:
        name = Path(name).stem
    return Path(name).stem


def kind_of(path: Path) -> str:
    """Return how a file is read.

    Raises:
        UserError: unknown suffix, with the suffixes there are.
    """
    suffix = suffix_of(path)
    if suffix in PICKLES:
        raise UserError(f"{path}: {suffix} files can run code when they are read: write it as JSONL or parquet")
    if suffix not in KINDS:
        raise UserError(f"{path}: cannot read {suffix or 'a file without suffix'}; {near(suffix, KINDS)}")
    return KINDS[suffix]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, unpacked.

    Raises:
        UserError: it cannot be opened, or is not what its suffix says.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a file")
    try:
        with _stream(path) as stream:
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or str(error) or 'cut short'}") from error


def _stream(path: Path) -> IO[bytes]:
    packed = path.suffix.lower()
    if packed == ".zst":
        try:
            import pyarrow
        except ImportError:
            raise UserError(f"{path}: .zst needs the package pyarrow: pip install pyarrow") from None
        return cast("IO[bytes]", io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(packed, open)
    return cast("IO[bytes]", opener(path, "rb"))


def whole(path: Path) -> str:
    """Return a file's text, without a byte order mark.

    Raises:
        UserError: not UTF-8, or NUL bytes in it; names the line.
    """
    with opened(path) as stream:
        return decoded(stream.read(), str(path))


def decoded(raw: bytes, where: str, line: int = 1) -> str:
    """Return bytes as text, without a byte order mark.

    Args:
        raw: UTF-8, hopefully.
        where: the file, for messages.
        line: number of the first line.

    Raises:
        UserError: not UTF-8, or NUL bytes; names the line.
    """
    content = next((name for magic, name in _MAGIC.items() if line == 1 and raw.startswith(magic)), None)
    if content is not None:
        raise UserError(f"{where}: {content} by its content, whatever its suffix says; give it the suffix that it has")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{where}: UTF-16, not UTF-8; convert it: iconv -f utf-16 -t utf-8")
    try:
        words = raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        number, byte = line + raw.count(b"\n", 0, error.start), raw[error.start]
        raise UserError(
            f"{where}, line {number}: not UTF-8 (byte 0x{byte:02x}); if it is Latin-1: iconv -f latin1 -t utf-8"
        ) from None
    if "\0" in words:
        number = line + words.count("\n", 0, words.index("\0"))
        raise UserError(f"{where}, line {number}: a NUL byte: not a text file, or not in UTF-8")
    return words
