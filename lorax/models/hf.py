"""Any transformers model: a folder or a hub id; causal, sequence classification or seq2seq."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from lorax.errors import UserError, hub_reason
from lorax.models.checkpoint import Checkpoint
from lorax.models.quantisation import check_quantization, quantised_digest
from lorax.models.quiet import quiet
from lorax.models.registry import register
from lorax.records import digest_file

_SIDE_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_TOKEN_FILES = ("config.json", "generation_config.json", "tokenizer*", "*token*.json", "vocab*", "merges.txt",
                "*.model", "chat_template*")  # fmt: skip
"""What decides, beside the weights, which tokens go in and where an answer ends."""


@register("hf")
@dataclass(frozen=True, kw_only=True)
class HF(Checkpoint):
    """A model by hub id or folder: `model=hf model.path=...`."""

    name: str = "hf"
    path: str | None = None
    """A folder with config.json and weights, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    quantization: str | None = None
    """int8 | nf4 (torchao) | bnb_4bit | bnb_8bit (bitsandbytes); None: as the folder has its weights."""
    trust_remote_code: bool = False
    """Run Python code that lies in the folder. It may do anything; without it such a model is refused."""

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("model=hf: give model.path=<folder or hub id>")
        check_quantization(self.quantization)
        if not isinstance(self.trust_remote_code, bool):
            raise UserError(f"model.trust_remote_code={self.trust_remote_code}: must be true or false")

    def trusts_code(self) -> bool:
        """Return whether Python code in the folder may be run."""
        return self.trust_remote_code

    def folder(self, weights: bool = True) -> Path:
        """Return the checkpoint's folder."""
        return resolve(str(self.path), self.revision, weights, self.trust_remote_code)

    def digest(self) -> str:
        """Return the digest of the checkpoint's files."""
        return quantised_digest(digest_folder(self.folder(), self.trust_remote_code), self.quantization)

    def origin(self) -> dict[str, str]:
        """Return the hub's id and the commit that its branch or tag stood for; nothing for a folder."""
        return from_hub(str(self.path), self.folder())

    def quantised_as(self) -> str | None:
        """Return how the weights are to be quantised."""
        return self.quantization

    def skeleton_digest(self) -> str:
        """Return nothing: a skeleton is built before the weights are fetched."""
        return ""


def resolve(path: str, revision: str | None = None, weights: bool = True, code: bool = False) -> Path:
    """Return the local folder of a checkpoint, fetched from the hub where it is an id.

    Args:
        path: an existing folder, else a hub id.
        revision: branch, tag or commit, for hub ids.
        weights: fetch the weights too, not only configuration and tokenizer.
        code: fetch the Python files too.

    Raises:
        UserError: no such folder; the hub does not have it or cannot be reached.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise UserError(f"model.path={path}: the folder holds no config.json")
        if revision is not None:
            raise UserError(
                f"model.revision={revision}: model.path={path} lies here; only a model on the hub has revisions"
            )
        return local
    if local.exists():
        raise UserError(f"model.path={path}: a file; give the folder that holds config.json and the weights")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"model.path={path}: no such folder")
    return _fetched(path, revision, weights, code)


@functools.cache
def _fetched(path: str, revision: str | None, weights: bool, code: bool) -> Path:
    """Return the hub cache's folder of a checkpoint, asked for once a process."""
    from huggingface_hub import snapshot_download

    side_files = [*_SIDE_FILES, *(["*.py"] if code else [])]

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(path, revision=revision, allow_patterns=[*side_files, *patterns]))

    try:
        with quiet():
            if not weights:
                return fetch()
            folder = fetch("model*.safetensors")
            return folder if list(folder.glob("model*.safetensors")) else fetch("pytorch_model*.bin")
    except Exception as error:
        raise UserError(f"model.path={path}: no such folder, and not from the hub: {hub_reason(error)}") from error


def from_hub(hub_id: str, folder: Path) -> dict[str, str]:
    """Return id and commit of a checkpoint in the hub's cache, where its folder is named after the commit.

    Args:
        hub_id: the id, or the path of a folder, of which nothing is said.
        folder: where the checkpoint lies.
    """
    if Path(hub_id).expanduser().is_dir():
        return {}
    return {"hub": hub_id} | ({"commit": folder.name} if folder.parent.name == "snapshots" else {})


def digest_folder(folder: Path, code: bool = False) -> str:
    """Return a digest of the weights, the configuration and the tokenizer in a checkpoint folder.

    Args:
        folder: the checkpoint.
        code: of the Python files in it too.

    Raises:
        UserError: the folder holds no weights.
    """
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise UserError(f"{folder}: no model*.safetensors and no pytorch_model*.bin")
    others = sorted({path for pattern in _TOKEN_FILES for path in folder.glob(pattern) if path.is_file()})
    others += sorted(folder.rglob("*.py")) if code else []
    digests = [[path.name, digest_file(path)] for path in [*others, *weights]]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:32]
