"""The tokenizer of the folder that a model was loaded from, which a merged checkpoint needs as well."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

_FILES = (
    "tokenizer*",
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
)


def folder_of(model: Any) -> Path | None:
    """Return the folder that `from_pretrained` read: the user's, or the hub cache's; None for a model made otherwise.

    Nothing is fetched.
    """
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=getattr(config, "_commit_hash", None))
    except HFValidationError:  # the name of a folder that is gone
        return None
    return Path(found).parent if isinstance(found, str) else None


def copy_tokenizer(model: Any, folder: Path) -> list[str]:
    """Copy the tokenizer's files, as they are, from where a model was loaded; return their names.

    Args:
        model: has transformers' configuration, or there is nothing to copy.
        folder: where they go; files that it has already stay.
    """
    source, copied = folder_of(model), []
    if source is None or source.resolve() == folder.resolve():
        return []
    for file in sorted({path for pattern in _FILES for path in source.glob(pattern) if path.is_file()}):
        name = file.relative_to(source)
        if (folder / name).exists():
            continue
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
        copied.append(str(name))
    return copied
