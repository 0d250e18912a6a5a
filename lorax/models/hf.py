"""Any transformers model: a folder or a hub id; causal, sequence classification or seq2seq."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorax.errors import UserError, near
from lorax.models.attention import choose
from lorax.models.registry import Loaded, register
from lorax.records import digest_file

DTYPES = {"bf16-autocast": "float32"}
"""Names of precisions whose weights are kept in another one; all others name a torch dtype."""
_SIDE_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_WORDS = ("config.json", "generation_config.json", "tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.model",
          "chat_template*")  # fmt: skip
"""What decides, beside the weights, which tokens go in and where an answer ends."""


@register("hf")
@dataclass(frozen=True, kw_only=True)
class HF:
    """A model by hub id or folder: `model=hf model.path=...`."""

    name: str = "hf"
    path: str | None = None
    """A folder with config.json and weights, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    kind: str = "auto"
    """causal | classification | seq2seq | auto: from the task and the checkpoint's architecture."""
    attention: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("model=hf: give model.path=<folder or hub id>")

    def digest(self) -> str:
        """Return the digest of the checkpoint's files."""
        return digest_folder(resolve(str(self.path), self.revision))

    def skeleton(self, labels: Sequence[str] | None) -> Loaded:
        """Return the architecture on the meta device."""
        return skeleton_from(resolve(str(self.path), self.revision, weights=False), self, labels, "")

    def load(self, labels: Sequence[str] | None, dtype: str, device: str, seed: int) -> Loaded:
        """Return the model with its weights."""
        folder = resolve(str(self.path), self.revision)
        return load_from(folder, self, labels, dtype, device, seed, digest_folder(folder))


def resolve(path: str, revision: str | None = None, weights: bool = True) -> Path:
    """Return the local folder of a checkpoint, fetched from the hub where it is an id.

    Args:
        path: an existing folder, else a hub id.
        revision: branch, tag or commit, for hub ids.
        weights: fetch the weights too, not only configuration and tokenizer.

    Raises:
        UserError: no such folder; the hub does not have it or cannot be reached.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise UserError(f"model.path={path}: the folder holds no config.json")
        return local
    if local.exists():
        raise UserError(f"model.path={path}: a file; give the folder that holds config.json and the weights")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"model.path={path}: no such folder")
    return _fetched(path, revision, weights)


@functools.cache
def _fetched(path: str, revision: str | None, weights: bool) -> Path:
    """Return the hub cache's folder of a checkpoint, asked for once a process."""
    from huggingface_hub import snapshot_download

    from lorax.models.quiet import quiet

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(path, revision=revision, allow_patterns=[*_SIDE_FILES, *patterns]))

    try:
        with quiet():
            if not weights:
                return fetch()
            folder = fetch("model*.safetensors")
            return folder if list(folder.glob("model*.safetensors")) else fetch("pytorch_model*.bin")
    except Exception as error:
        raise UserError(f"model.path={path}: no such folder, and not from the hub: {_first_line(error)}") from error


def digest_folder(folder: Path) -> str:
    """Return a digest of the weights, the configuration and the tokenizer in a checkpoint folder.

    Raises:
        UserError: the folder holds no weights.
    """
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise UserError(f"{folder}: no model*.safetensors and no pytorch_model*.bin")
    words = sorted({path for pattern in _WORDS for path in folder.glob(pattern) if path.is_file()})
    digests = [[path.name, digest_file(path)] for path in [*words, *weights]]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:32]


def skeleton_from(folder: Path, family: Any, labels: Sequence[str] | None, digest: str) -> Loaded:
    """Build the architecture of a checkpoint folder on the meta device."""
    import torch

    from lorax.models.quiet import quiet

    with quiet():
        config = read_config(folder, labels)
        kind = kind_of(config, family.kind, labels, str(folder))
        with torch.device("meta"):
            model = _auto(kind).from_config(config, attn_implementation="eager")
    head = [] if kind != "classification" else fresh_head(model, _weight_names(folder))
    return Loaded(model.eval(), None, kind, family.name, digest, head)


def _pluggable(kind: str, config: Any) -> bool:
    """Say whether the model takes attention kernels by name; older ones (Falcon, T5) bring classes of their own."""
    try:
        found = _auto(kind)._model_mapping[type(config)]
    except KeyError:  # code that comes with the checkpoint
        return False
    options = found if isinstance(found, list | tuple) else [found]
    return all(getattr(option, "_supports_attention_backend", False) for option in options)


def load_from(
    folder: Path, family: Any, labels: Sequence[str] | None, dtype: str, device: str, seed: int, digest: str
) -> Loaded:
    """Load a checkpoint folder: model in eval mode, tokenizer, kind; a missing head is drawn from `seed`."""
    import torch
    from transformers import AutoTokenizer

    from lorax.models.quiet import quiet

    device = pick_device(device)
    with quiet(), torch.random.fork_rng(devices=[]):
        config = read_config(folder, labels)
        kind = kind_of(config, family.kind, labels, str(folder))
        attention = choose(family.attention, device)
        if attention != family.attention and not _pluggable(kind, config):
            attention = None  # transformers' own choice for an attention of the model's own kind
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model, info = _auto(kind).from_pretrained(
                folder,
                config=config,
                dtype=torch_dtype(dtype),
                attn_implementation=attention,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"model.path={folder}: {_first_line(error)}") from error
    head = []
    if kind == "classification":
        missing = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
        head = sorted({key.rpartition(".")[0] for key in missing})
        init_head(model, head, seed)
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    kernel = attention or getattr(model.config, "_attn_implementation", None)
    return Loaded(model.to(device).eval(), tokenizer, kind, family.name, digest, head, kernel)


def read_config(folder: Path, labels: Sequence[str] | None) -> Any:
    """Read a checkpoint's configuration, with the task's classes put in.

    Raises:
        UserError: transformers does not know the architecture, or the file is broken.
    """
    from transformers import AutoConfig

    extra = {} if labels is None else {"num_labels": len(labels)}
    try:
        config = AutoConfig.from_pretrained(folder, **extra)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.path={folder}: {_first_line(error)}") from error
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
    return config


def kind_of(config: Any, asked: str, labels: Sequence[str] | None, where: str) -> str:
    """Return causal, classification or seq2seq: what was asked for, else what task and checkpoint say.

    Raises:
        UserError: a task without classes on a checkpoint that cannot generate.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if asked not in (None, "auto"):
        return asked
    if labels is not None:
        return "classification"
    architectures = " ".join(config.architectures or ())
    if config.is_encoder_decoder:
        return "seq2seq"
    if "ForCausalLM" in architectures or "LMHead" in architectures:
        return "causal"
    if "ForConditionalGeneration" in architectures and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "causal"  # a language model that also takes images or sound
    raise UserError(
        f"{where}: {architectures or config.model_type} is no text generator; "
        "choose a classification task, or set model.kind"
    )


def init_head(model: Any, head: Sequence[str], seed: int) -> None:
    """Draw the weights of fresh heads from the seed and each parameter's name: N(0, 0.02^2), biases 0, norms 1."""
    import torch

    std = getattr(model.config, "initializer_range", None) or 0.02
    for module in head:
        for name, parameter in model.get_submodule(module).named_parameters(prefix=module):
            digest = hashlib.sha256(f"head {seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            scale = parameter.ndim == 1 and name.endswith("weight")
            drawn = torch.ones(parameter.shape) if scale else torch.zeros(parameter.shape)
            if parameter.ndim > 1:
                drawn.normal_(0.0, std, generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)


def fresh_head(model: Any, weights: set[str]) -> list[str]:
    """Return the modules outside the pretrained body that a checkpoint has no weights for."""
    prefix = f"{model.base_model_prefix}."
    own = {name.rpartition(".")[0] for name, _ in model.named_parameters() if not name.startswith(prefix)}
    held = {name.rpartition(".")[0] for name in weights}
    return sorted(own - held)


def pick_device(device: str) -> str:
    """Return the device for "auto": cuda, else mps, else cpu; refuse one that is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there.get(device.split(":")[0], False):
        raise UserError(f"device={device}: not available; there is {', '.join(k for k, v in there.items() if v)}")
    return device


def torch_dtype(name: str) -> Any:
    """Return the torch dtype of the weights; `bf16-autocast` keeps them in float32.

    Raises:
        UserError: no such floating point dtype.
    """
    import torch

    options = ("float32", "bfloat16", "float16", "float64", *DTYPES)
    if name not in options:
        raise UserError(f"dtype={name}: {near(name, options)}")
    return getattr(torch, DTYPES.get(name, name))


def _auto(kind: str) -> Any:
    import transformers

    return {
        "causal": transformers.AutoModelForCausalLM,
        "classification": transformers.AutoModelForSequenceClassification,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
    }[kind]


def _weight_names(folder: Path) -> set[str]:
    """Return the names of the tensors in a folder's safetensors files; empty where there are none yet."""
    from safetensors import safe_open

    found: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found.update(file.keys())
    return found


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
