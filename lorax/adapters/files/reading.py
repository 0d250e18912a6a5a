"""A saved adapter is read here, and nothing in it is believed: names, digests, dtypes, shapes, finite numbers."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lorax.adapters.files.format import FORMAT, HEADER, digest_header, signature
from lorax.errors import UserError, near

PEFT = "adapter_config.json"
"""What an adapter in PEFT's format has instead of a header."""
KINDS = ("adapter", "full", "none", "head")
_BYTES = 2**28
"""A longer header is no header: that of 10,000 layers has 20 MB."""
_TEXT = {"kind": str, "tensors": str, "info": dict, "heads": list, "layers": dict}
_SEALED = {"sha256": str, "index": dict, "digest": str}


def read_header(path: str | Path) -> dict[str, Any]:
    """Read the JSON header of a saved adapter and check its digest.

    Args:
        path: the folder. A header of format 1 has no digest; a warning says so.

    Raises:
        UserError: no adapter there, one of a newer format, or a header that is damaged or was edited.
    """
    file = Path(path) / HEADER
    if not file.is_file():
        raise UserError(_nothing(Path(path)))
    header = _parsed(_inside(Path(path), HEADER))
    version = header.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise UserError(f"{file}: format {_short(version)} is no format of a saved adapter")
    if version > FORMAT:
        raise UserError(f"{file}: format {version}, this version reads up to {FORMAT}")
    _check_fields(file, header, _TEXT | (_SEALED if version > 1 else {}))
    if version == 1:
        warnings.warn(f"{file}: stored before digests; not verified (saving it again adds them)", stacklevel=4)
    elif digest_header(header) != header["digest"]:
        raise UserError(f"{file}: its content does not match its digest: it is damaged or was edited")
    if header["kind"] not in KINDS:
        raise UserError(f"{file}: kind {_short(header['kind'])}; {near(header['kind'], KINDS)}")
    if header["kind"] == "adapter":
        _check_fields(file, header, {"recenter": str, "dropout": (int, float)})
        if not header["layers"]:
            raise UserError(f"{file}: names no adapted layer")
    return header


def read_tensors(path: str | Path, header: dict[str, Any]) -> dict[str, Tensor]:
    """Read the tensors that belong to a header, and check them against it.

    Raises:
        UserError: the file is missing, damaged, another one, or outside the folder; or a tensor is missing, of
            another dtype or shape, or not finite.
    """
    file = _inside(Path(path), header["tensors"])
    try:
        if "sha256" in header:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != header["sha256"]:
                raise UserError(f"{file}: its SHA-256 is {found[:16]}, stored is {header['sha256'][:16]}: damaged")
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            wanted = header.get("index") or names
            if missing := sorted(set(wanted) - set(names)):
                raise UserError(f"{file}: lacks the tensor {_short(missing[0])}")
            tensors = {key: opened.get_tensor(key) for key in wanted}
    except UserError:
        raise
    except Exception as error:  # safetensors has errors of its own, of several kinds
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())[:150]})") from None
    for key, tensor in tensors.items():
        if "index" in header and signature(tensor) != header["index"][key]:
            raise UserError(f"{file}: {key} is {signature(tensor)}, stored as {_short(header['index'][key])}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{file}: {key} holds NaN or Inf: the run diverged, or the file is damaged")
    return tensors


def check_layer(path: str | Path, name: str, described: Any) -> None:
    """Check what a header says about one layer, as far as every kind of adapter has it.

    Raises:
        UserError: it is no mapping, its scale is no finite number, or the base's fingerprint lacks a part.
    """
    where = f"{Path(path) / HEADER}: layer {_short(name)}"
    if not isinstance(described, dict):
        raise UserError(f"{where} is {_short(described)}, not a mapping")
    eta = described.get("eta", 1.0)
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not math.isfinite(eta):
        raise UserError(f"{where}: eta={_short(eta)} is not a finite number")
    if "digest" not in described:
        return
    wanted = {"digest": str, "shape": list, "dtype": str, "sample": list}
    if odd := [key for key, kind in wanted.items() if not isinstance(described.get(key), kind)]:
        raise UserError(f"{where}: {odd[0]} of its base weight is missing or of another type")


def _parsed(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _BYTES:
            raise UserError(f"{file}: {file.stat().st_size:,} bytes; a header has at most {_BYTES:,}")
        header = json.loads(file.read_bytes().decode("utf-8"))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, too long a number, too deep
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())[:150]})") from None
    if not isinstance(header, dict):
        raise UserError(f"{file}: holds {type(header).__name__}, where an object is needed")
    return header


def _check_fields(file: Path, header: dict[str, Any], fields: dict[str, Any]) -> None:
    for key, kind in fields.items():
        if key not in header:
            raise UserError(f"{file}: lacks {key!r}")
        if not isinstance(header[key], kind) or isinstance(header[key], bool):
            raise UserError(f"{file}: {key}={_short(header[key])} is of another type")


def _inside(folder: Path, name: str) -> Path:
    """Return a file of the folder; a name must be plain, and a link must stay in the folder.

    The hub's cache is let through: its snapshots are links into the `blobs` of the same repository.
    """
    file = folder / name
    if name != Path(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise UserError(f"{folder / HEADER}: tensors={_short(name)}: a plain file name is needed")
    if not file.is_file():
        raise UserError(f"{file}: cannot be read (no such file)")
    home, real = folder.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if real.parent not in (home, blobs):
        raise UserError(f"{file}: is a link that leaves the folder")
    return file


def _nothing(path: Path) -> str:
    """Say what is at the place instead of an adapter."""
    if not path.is_dir():
        return f"{path}: no such folder, so no saved adapter ({HEADER} is missing)"
    below = sorted({child.parent.name for file in (HEADER, PEFT) for child in path.glob(f"*/{file}")})
    if below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        return f"{path}: no saved adapter ({HEADER} is missing); one level down are {', '.join(below[:3])}{more}"
    if (path / PEFT).is_file():
        return f"{path}: holds an adapter in PEFT's format, which lorax.load reads"
    return f"{path}: no saved adapter ({HEADER} is missing)"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
