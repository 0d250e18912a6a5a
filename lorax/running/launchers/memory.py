"""Errors that say that memory has run out: a smaller pack may still fit."""

from __future__ import annotations

import gc
import sys

_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, says that memory has run out, of the CPU or of a GPU."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        named = any(kind.__name__ == "OutOfMemoryError" for kind in type(cause).__mro__)
        worded = isinstance(cause, RuntimeError | OSError) and any(text in str(cause).lower() for text in _TEXTS)
        if isinstance(cause, MemoryError) or named or worded:
            return True
        cause = cause.__cause__
    return False


def give_back() -> None:
    """Free what the failed attempt has left: its cycles, and the blocks that torch keeps for the next tensor."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
