"""Encoded splits kept on disk, under a digest of all that decides the tokens: tokenizer, template and texts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError
from lorax.records import read_json, write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorax.forward.prompts import Pair

VERSION = 2
"""Raised when the same content means other tokens (a change in how prompts are built)."""
SMALLEST = 256
"""Splits with fewer texts are tokenised anew: that is faster than a digest of the tokenizer."""


def folder() -> Path:
    """Return where encoded splits are kept: in `$LORAX_CACHE`, else in the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("LORAX_CACHE") or user_cache_dir("lorax")) / "tokens"


def cached(tokenizer: PreTrainedTokenizerBase, content: list[Any], build: Callable[[], list[Pair]]) -> list[Pair]:
    """Return (input ids, label ids) of every text, read from disk if the same content was built before.

    A cache file that cannot be read is made again; a cache that cannot be written is no error.

    Args:
        tokenizer: a fast one, else nothing is cached.
        content: everything else that decides the tokens, as JSON values; the texts come last.
        build: makes the pairs.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(content[-1]) < SMALLEST:
        return build()
    path = folder() / f"{_key(tokenizer, backend, content)}.json"
    try:
        pairs = _read(path, path.stat().st_mtime_ns)
        if len(pairs) == len(content[-1]):
            return pairs
    except (OSError, ValueError, TypeError):
        pass
    pairs = build()
    try:
        write_atomic(path, json.dumps(pairs, separators=(",", ":")))
    except UserError:
        pass  # a full or read-only cache costs time, not the run
    return pairs


@lru_cache(maxsize=6)
def _read(path: Path, changed: int) -> list[Pair]:
    """Read a file once a process and time of change: every run of a pack asks for the same splits."""
    return [(ids, labels) for ids, labels in read_json(path)]


def _key(tokenizer: PreTrainedTokenizerBase, backend: Any, content: list[Any]) -> str:
    digest = hashlib.sha256(backend.to_str().encode())
    digest.update(json.dumps([VERSION, tokenizer.chat_template, tokenizer.eos_token_id, content]).encode())
    return digest.hexdigest()[:32]
