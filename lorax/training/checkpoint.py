"""Mid-run checkpoints: one file for each run, written whole or not at all, read without running pickled code."""

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


def save_checkpoints(states: Sequence[tuple[Path, str, dict[str, Any]]]) -> None:
    """Write the states of a pack's runs together; a kill at any moment leaves all of one step or all of the next.

    Args:
        states: for each run: its file; its fingerprint, which another run's state does not have; and its state,
            made of tensors, numbers, texts and mappings or lists of them.
    """
    write_together((path, _bytes(fingerprint, state)) for path, fingerprint, state in states)


def _bytes(fingerprint: str, state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"version": VERSION, "fingerprint": fingerprint, **state}, buffer)
    return buffer.getvalue()


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return a run's saved state, or None where there is none to continue from.

    A file that is damaged, or from another version or another run, is not used: a warning says so, and the run starts
    from its beginning.
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
