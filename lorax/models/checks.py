"""What a checkpoint folder must hold before and after it is loaded: its own weights, all of them, no foreign code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError
from lorax.models.registry import HEADED
from lorax.records import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|position_ids|masked_bias|causal_mask|attn\.bias|attention\.bias)$"
)
"""Constants that older checkpoints store and newer models compute."""
_SHOWN = 3


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn whatever reading a checkpoint raises into one line, but for errors of memory.

    Raises:
        UserError: names the folder and what is wrong with it.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if "OutOfMemory" in type(error).__name__:
            raise
        raise UserError(f"model.path={folder}: {_words(folder, error)}") from error


def _words(folder: Path, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        files = ", ".join(sorted(path.name for path in folder.glob("*.py"))[:_SHOWN]) or "code named in auto_map"
        return f"needs code of its own ({files}), which is not run; model.trust_remote_code=true runs it"
    if type(error).__name__ == "UnpicklingError" or "weights_only" in text.lower() or "WeightsUnpickler" in text:
        return "its .bin file holds more than tensors, and code in it is not run; convert it to safetensors"
    return f"cannot be read: {first_line(error)}"


def first_line(error: Exception) -> str:
    """Return what an error's message begins with, at most 200 characters: its first line, and those that a colon opens.

    A lone key or name says nothing without the kind of error.
    """
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    words = " ".join(text.split()) if first.endswith(":") else first
    words = f"{type(error).__name__} {words}".strip() if len(words.split()) < 2 else words
    return words[:200]


def check_files(folder: Path) -> None:
    """Refuse a folder whose weight files are incomplete or cut short, or that transformers would take for an adapter.

    Only headers are read.

    Raises:
        UserError: names the file.
    """
    from safetensors import safe_open

    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model.path={folder}: holds an adapter (adapter_config.json) beside the model, and the adapter's base "
            "would be loaded in its place; give a folder without it"
        )
    for name in _INDICES:
        if (folder / name).is_file():
            index = read_json(folder / name)
            shards = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise UserError(f"{folder / name}: no index of weights (weight_map is missing)")
            for shard in sorted(set(shards.values())):
                if Path(shard).name != shard or not (folder / shard).is_file():
                    raise UserError(f"{folder / name}: names {shard!r}, which is not in the folder")
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except Exception as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)})") from None


def fresh_head(model: PreTrainedModel, info: dict[str, Any], kind: str, folder: Path) -> list[str]:
    """Return the modules of a classifier that the checkpoint has no weights for; refuse any other gap.

    Args:
        model: as loaded.
        info: transformers' `output_loading_info`.
        kind: of `KINDS`; only those in `HEADED` may have a fresh head.
        folder: for the message.

    Raises:
        UserError: weights are missing, have another shape, or belong to parts that this model has and find no place
            there: they are not those of this config.json.
    """
    body = f"{model.base_model_prefix}."
    absent = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    outside = {key for key in absent if not key.startswith(body) or ".pooler." in f".{key}"}
    head = outside if kind in HEADED else set()
    modules = {name for name, _ in model.named_modules()}
    surplus = {key for key in info["unexpected_keys"] if _has_a_place(key, body, modules, kind)}
    shapes = {key for key, *_ in info["mismatched_keys"]}
    wrong = {
        "missing": absent - head - shapes, "of another shape": (absent - head) & shapes,
        "without a place in the model": surplus,
    }  # fmt: skip
    found = [f"{len(keys)} {word} ({_few(sorted(keys))})" for word, keys in wrong.items() if keys]
    if errors := [line for line in info.get("error_msgs", []) if line]:
        found.append(str(errors[0]).splitlines()[0][:120])
    if found:
        raise UserError(f"model.path={folder}: its weights are not those of its config.json: {'; '.join(found)}"[:600])
    return sorted({key.rpartition(".")[0] for key in head})


def _has_a_place(key: str, body: str, modules: set[str], kind: str) -> bool:
    """Return whether a tensor that was not loaded belongs to a part that the model has: one more layer, a bias.

    A part that the model does not have at all (a vision tower, a pooler, another head) may be left out.
    """
    if _BUFFERS.search(key):
        return False
    inside = key.startswith(body)
    if not inside and f"{body}{key.split('.')[0]}" in modules:
        key, inside = f"{body}{key}", True  # a checkpoint of the body alone
    parts = key.split(".")
    if inside:
        return ".".join(parts[:2]) in modules and len(parts) > 2
    return kind not in HEADED and parts[0] in modules


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")


def check_vocabulary(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer that has tokens without an embedding.

    Raises:
        UserError: names both sizes.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    highest = max([len(tokenizer) - 1, *getattr(tokenizer, "added_tokens_decoder", {})])
    if highest >= rows:
        raise UserError(f"model.path={folder}: the tokenizer has {highest + 1} tokens, the model embeds {rows}")
