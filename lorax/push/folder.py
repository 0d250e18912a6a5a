"""The folder that goes to the hub: the adapter as PEFT has it, the tokenizer, the card."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from lorax.config import RunConfig, resolve
from lorax.errors import UserError
from lorax.records.fields import method
from lorax.records.folder import staged

if TYPE_CHECKING:
    from lorax.models.registry import Loaded
    from lorax.push.saved import SavedRun

README = "README.md"
_OURS = ("adapter_config.json", "adapter_model.safetensors", README, ".cache", "tokenizer*", "*token*.json", "vocab*",
         "merges.txt", "*.model", "chat_template*", "additional_chat_templates")  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A folder as it was written."""

    files: list[str]
    rank: int
    """The largest of a layer."""
    error: float
    """The largest relative error of a layer's change; 0 unless a rank was asked for."""


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds something else than an earlier push: all of it would be uploaded.

    Raises:
        UserError: names the first such file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"folder={folder}: a file, not a folder")
    others = [path.name for path in folder.glob("*") if not any(fnmatch(path.name, one) for one in _OURS)]
    if others:
        raise UserError(
            f"folder={folder}: holds {sorted(others)[0]}, which is no part of an adapter; name a new folder"
        )


def write(saved: SavedRun, folder: Path, repo: str | None, rank: int | None = None) -> Written:
    """Load the run's model and adapter, and write the folder; stock PEFT computes the same, which is checked.

    Args:
        saved: the run.
        folder: it appears when everything in it is written and verified.
        repo: what the card calls the adapter; None: the folder.
        rank: no layer gets more than this; None: exact.

    Raises:
        UserError: the model here is not the one that was trained on; a method without a form in PEFT's format.
    """
    from lorax.api.load import load
    from lorax.push.card import model_card

    refuse_foreign(folder)
    config = resolve(saved.record.config)
    loaded = _base(saved, config)
    adapters = load(loaded.model, saved.folder)
    origin = loaded.origin
    with staged(folder, last=["adapter_config.json", README]) as stage:
        try:
            exported = adapters.export_peft(stage, rank=rank, base=origin.get("hub"), revision=origin.get("commit"))
        except UserError as error:
            raise UserError(
                f"run {saved.record.run_id}: init={method(saved.record)} in PEFT's format: {error}"
            ) from None
        _write_tokenizer(loaded, stage)
        written = Written([], max(exported["rank"].values()), max(exported["error"].values()))
        model_card(saved, loaded, written, repo or str(folder)).save(stage / README)
        files = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
    return Written(files, written.rank, written.error)


def _base(saved: SavedRun, config: RunConfig) -> Loaded:
    """Return the model that the run was trained on, with the classes of its task.

    Raises:
        UserError: model or classes are others here.
    """
    from lorax.models.registry import digest, load
    from lorax.running.device import resolve_placement
    from lorax.running.preflight import class_names, load_task

    record, labels = saved.record, None
    if record.task.get("kind") == "classification":
        task = load_task(next(iter(config.parts().values()), config))
        labels = class_names(task)
        if not record.task.get("parts") and task.digest != record.task.get("digest"):
            raise UserError(f"run {record.run_id}: task={task.name} has other data here, so perhaps other classes")
    here, then = digest(config.model), record.model.get("digest")
    if here != then:
        raise UserError(
            f"run {record.run_id}: trained on a model with digest {then}, model={config.model['name']} has {here}"
        )
    placement = resolve_placement(str(record.identity.get("dtype", config.dtype)), "auto")
    return load(config.model, labels=labels, dtype=placement.weights, device=placement.device, seed=config.seed)


def _write_tokenizer(loaded: Loaded, folder: Path) -> None:
    """Put the base's tokenizer into the folder: its own files where it has some."""
    from lorax.exports.tokenizer import copy_tokenizer

    if not copy_tokenizer(loaded.model, folder) and loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(str(folder))
