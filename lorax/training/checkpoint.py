"""Mid-run checkpoints: one file a lane, written whole or not at all, read without pickle's code."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorax.records.store import write_together

VERSION = 1


def save_checkpoints(lanes: Sequence[tuple[Path, str, dict[str, Any]]]) -> None:
    """Write the states of a pack's lanes together: a kill leaves all of one step or all of the next."""
    write_together((path, _bytes(fingerprint, state)) for path, fingerprint, state in lanes)


def _bytes(fingerprint: str, state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"version": VERSION, "fingerprint": fingerprint, **state}, buffer)
    return buffer.getvalue()


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read a lane's state, or return None if there is none to go on from.

    A damaged file, another version's or another run's is reported and passed over: the run then
    starts from its beginning.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        warnings.warn(f"{path} cannot be read ({type(error).__name__}): starting over", stacklevel=2)
        return None
    if state.get("version") != VERSION or state.get("fingerprint") != fingerprint:
        warnings.warn(f"{path} belongs to another run: starting over", stacklevel=2)
        return None
    return state
