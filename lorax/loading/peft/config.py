"""PEFT's adapter_config.json: what of it lorax holds exactly, and one line for what it does not. Torch-free."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorax.adapters.selection.rules import Rules
from lorax.errors import UserError

CONFIG = "adapter_config.json"
KINDS = ("LORA", "ADALORA")
_BYTES = 2**24
_REFUSED = {
    "layer_replication": "it builds another model out of repeated layers",
    "trainable_token_indices": "it trains single rows of an embedding",
    "target_parameters": "it adapts bare parameters, not layers",
    "lora_bias": "it trains a bias inside the adapter",
    "alora_invocation_tokens": "it acts on the tokens after its invocation alone",
    "use_qalora": "it pools the adapter's input",
    "use_bdlora": "its factors are block diagonal by device",
    "kasa_config": "it changes the base weights",
    "velora_config": "it changes the gradient of A",
    "arrow_config": "it routes among other adapters",
    "monteclora_config": "it samples its factors",
    "megatron_config": "it adapts Megatron's layers",
}
_NEUTRAL = {
    "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "use_dora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "runtime_config", "ensure_weight_tying", "target_r", "init_r", "tinit", "tfinal", "deltaT",
    "beta1", "beta2", "orth_reg_weight", "total_step",
}  # fmt: skip
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of PEFT's `init_lora_weights` under which it writes into the base weights when it loads, too."""


@dataclass(frozen=True)
class PeftConfig:
    """What a folder says of its adapter."""

    path: Path
    kind: str
    """LORA | ADALORA."""
    rank: int
    """"r"; of AdaLoRA the rank at the start, which its scale keeps."""
    alpha: float
    rslora: bool
    dora: bool
    """Whether a length of each row is trained beside the factors, in LORA."""
    dropout: float
    bias: str
    """none | all | lora_only."""
    targets: str | list[str] | None
    rules: Rules

    def eta(self, name: str, rank: int) -> float:
        """Return the scale of a layer, as PEFT forms it."""
        if self.kind == "ADALORA":
            return (self.alpha if self.alpha > 0 else self.rank) / (self.rank + 1e-5)
        alpha = self.rules.alpha(name, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def names(self, name: str) -> bool | None:
        """Return whether target_modules stands for a layer; None where it does not say."""
        if self.targets is None or self.targets == "all-linear":
            return None
        if isinstance(self.targets, str):
            found = re.fullmatch(self.targets, name) is not None
        else:
            found = name in self.targets or name.endswith(tuple(f".{target}" for target in self.targets))
        return found and self.rules.keeps(name, self.targets)


def is_peft_folder(path: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's format, and none of lorax's own."""
    return (path / CONFIG).is_file() and not (path / "adapter.json").is_file()


def read_config(path: Path) -> PeftConfig:
    """Read and check a folder's adapter_config.json.

    Raises:
        UserError: it cannot be read, is of another kind than `KINDS`, or sets what lorax does not hold exactly.
    """
    data = _parsed(path / CONFIG)
    kind = data.get("peft_type")
    if kind not in KINDS:
        raise UserError(f"{path}: a {_short(kind)} adapter of PEFT; lorax reads {' and '.join(KINDS)} adapters")
    for key, why in _REFUSED.items():
        if data.get(key):
            raise UserError(f"{path}: {key}={_short(data[key])} cannot be held exactly: {why}")
    if kind == "ADALORA" and data.get("use_dora"):
        raise UserError(f"{path}: use_dora={_short(data['use_dora'])} cannot be held exactly: AdaLoRA has no DoRA")
    start = str(data.get("init_lora_weights", True)).lower()
    if start.startswith(_MOVES_BASE):
        raise UserError(
            f"{path}: init_lora_weights={start} changes the base weights when it loads; save it from PEFT as a plain "
            "LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if odd := [key for key, value in data.items() if value and key not in _NEUTRAL and key not in _REFUSED]:
        raise UserError(f"{path}: {odd[0]}={_short(data[odd[0]])} is no setting that is known here")
    ranks = data.get("rank_pattern") if kind == "LORA" else None  # AdaLoRA keeps its masks there
    given = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "alpha_pattern")
    try:
        rules = Rules(**{key: data.get(key) for key in given}, rank_pattern=ranks)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    targets = data.get("target_modules")
    if not (targets is None or isinstance(targets, str) or _texts(targets)):
        raise UserError(f"{path}: target_modules={_short(targets)}: a text or a list of texts is needed")
    bias = data.get("bias") or "none"
    if bias not in ("none", "all", "lora_only"):
        raise UserError(f"{path}: bias={_short(bias)}: none, all or lora_only is needed")
    return PeftConfig(
        path, kind, int(_number(path, data, "r" if kind == "LORA" else "init_r", whole=True)),
        _number(path, data, "lora_alpha"), bool(data.get("use_rslora")), bool(data.get("use_dora")),
        _number(path, data, "lora_dropout", 0.0),
        bias, targets, rules,
    )  # fmt: skip


def _parsed(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _BYTES:
            raise UserError(f"{file}: {file.stat().st_size:,} bytes; a configuration has at most {_BYTES:,}")
        data = json.loads(file.read_bytes().decode("utf-8"))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())[:150]})") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: holds {type(data).__name__}, where an object is needed")
    return data


def _number(path: Path, data: dict[str, Any], key: str, default: float | None = None, whole: bool = False) -> float:
    value = data.get(key, default)
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or (whole and value < 1) or (key == "lora_dropout" and not 0 <= value < 1):  # type: ignore[arg-type, operator]
        raise UserError(f"{path / CONFIG}: {key}={_short(value)}: another number is needed")
    return value  # type: ignore[return-value]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _short(value: Any) -> str:
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
