"""Tokenised splits on disk, addressed by their content: tokenizer, template and texts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.records.store import write_atomic

Pairs = list[tuple[list[int], list[int]]]
VERSION = 1
"""Raised when the same content means other tokens (a change in how prompts are built)."""
SMALLEST = 256
"""Splits with fewer texts are tokenised again: that is faster than hashing the tokenizer."""


def folder() -> Path:
    """Return where caches lie: `$LORAX_CACHE`, else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("LORAX_CACHE") or user_cache_dir("lorax")) / "tokens"


def cached(tokenizer: Any, content: list[Any], build: Callable[[], Pairs]) -> Pairs:
    """Return (input ids, label ids) of every text, read from disk if the same content was built before.

    Args:
        tokenizer: a transformers tokenizer; a fast one, else nothing is cached.
        content: everything else that decides the tokens, as JSON values; the texts come last.
        build: makes the pairs. Unreadable cache files are made again; an unwritable cache is no error.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(content[-1]) < SMALLEST:
        return build()
    path = folder() / f"{_key(tokenizer, backend, content)}.json"
    try:
        pairs = _read(path, path.stat().st_mtime_ns)
        if len(pairs) == len(content[-1]):
            return pairs
    except (OSError, ValueError):
        pass
    pairs = build()
    try:
        write_atomic(path, json.dumps(pairs, separators=(",", ":")))
    except UserError:
        pass  # a full or read-only cache costs time, not the run
    return pairs


@lru_cache(maxsize=6)
def _read(path: Path, changed: int) -> Pairs:
    """Read a file once a process, unless it changed: every lane of a pack asks for the same splits."""
    return [(ids, labels) for ids, labels in json.loads(path.read_text())]


def _key(tokenizer: Any, backend: Any, content: list[Any]) -> str:
    digest = hashlib.sha256(backend.to_str().encode())
    template = getattr(tokenizer, "chat_template", None)
    digest.update(json.dumps([VERSION, template, tokenizer.eos_token_id, content]).encode())
    return digest.hexdigest()[:32]
