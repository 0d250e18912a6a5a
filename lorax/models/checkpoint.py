"""Model families whose folder transformers reads: configuration, tokenizer and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError
from lorax.models.attention import choose
from lorax.models.checks import check_files, check_vocabulary, fresh_head, readable
from lorax.models.fresh_head import init_head, modules_without_weights
from lorax.models.placement import pick_device, torch_dtype
from lorax.models.quantisation import config_for, quantise_loaded
from lorax.models.quiet import quiet
from lorax.models.registry import HEADED, Loaded, kind_for

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What such families share. Each says where its folder is, and what its digest is."""

    name: str
    kind: str = "auto"
    """One of `KINDS`, or auto: from the task and the checkpoint's architecture."""
    attention: str | None = None
    """The attention kernel; None: by device, from measured steps (`attention`)."""

    def folder(self, weights: bool = True) -> Path:
        """Return the folder, fetched or converted on first use.

        Args:
            weights: False where configuration and tokenizer are enough.
        """
        raise NotImplementedError

    def digest(self) -> str:
        """Return the digest of the pretrained weights and of what decides the tokens."""
        raise NotImplementedError

    def origin(self) -> dict[str, str]:
        """Return where the weights are from, as `Loaded.origin`; nothing for a folder of the user's."""
        return {}

    def skeleton_digest(self) -> str:
        """Return the digest for a skeleton; "" where it would need the weights."""
        return self.digest()

    def trusts_code(self) -> bool:
        """Return whether Python code in the folder may be run."""
        return False

    def quantised_as(self) -> str | None:
        """Return how the weights are quantised while they are loaded; None: not at all."""
        return None

    def model_class(self, kind: str) -> Any:
        """Return the class to build, one of transformers' automatic classes by default."""
        import transformers

        return {
            "causal": transformers.AutoModelForCausalLM,
            "classification": transformers.AutoModelForSequenceClassification,
            "seq2seq": transformers.AutoModelForSeq2SeqLM,
            "regression": transformers.AutoModelForSequenceClassification,
            "token_classification": transformers.AutoModelForTokenClassification,
            "question_answering": transformers.AutoModelForQuestionAnswering,
        }[kind]

    def skeleton(self, labels: Sequence[str] | None) -> Loaded:
        """Return the architecture on the meta device: names and shapes."""
        import torch

        with quiet():
            folder = self.folder(weights=False)
            check_files(folder)
            config = read_config(folder, labels, self.trusts_code())
            kind = kind_of(config, self.kind, labels, str(folder))
            with readable(folder), torch.device("meta"):
                model = self.build(kind, config)
        head = modules_without_weights(model, weight_names(folder)) if kind in HEADED else []
        return Loaded(model.eval(), None, kind, self.name, self.skeleton_digest(), head)

    def build(self, kind: str, config: PretrainedConfig) -> Any:
        """Return the model of a configuration, without pretrained weights."""
        return self.model_class(kind).from_config(
            config, attn_implementation="eager", trust_remote_code=self.trusts_code()
        )

    def load(self, labels: Sequence[str] | None, dtype: str, device: str, seed: int) -> Loaded:
        """Return the model with its weights, in eval mode; a head that they lack is drawn from `seed`.

        Raises:
            UserError: the folder cannot be read as a model.
        """
        import torch
        from transformers import AutoTokenizer

        device, folder = pick_device(device), self.folder()
        with quiet(), torch.random.fork_rng(devices=[]):
            check_files(folder)
            config = read_config(folder, labels, self.trusts_code())
            kind = kind_of(config, self.kind, labels, str(folder))
            kernel: str | None = choose(self.attention, device)
            if kernel != self.attention and not _takes_kernels(self.model_class(kind), config):
                kernel = None  # transformers' own choice for an attention of the model's own kind
            more: dict[str, Any] = {}
            quantised = config_for(self.quantised_as(), torch_dtype(dtype))
            if quantised is not None:
                more["quantization_config"] = quantised
            if quantised is not None or getattr(config, "quantization_config", None) is not None:
                more["device_map"] = {"": device}  # a quantised model may not be moved afterwards
            with readable(folder):
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trusts_code())
                model, info = self.model_class(kind).from_pretrained(
                    folder,
                    config=config,
                    dtype=torch_dtype(dtype),
                    attn_implementation=kernel,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    trust_remote_code=self.trusts_code(),
                    **more,
                )
                head = fresh_head(model, info, kind, folder)
                check_vocabulary(model, tokenizer, folder)
        if kind in HEADED:
            init_head(model, head, seed)
            if getattr(model.config, "pad_token_id", None) is None:
                model.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
        quantise_loaded(model, self.quantised_as())
        placed = model if "device_map" in more else model.to(device)
        attention = kernel or getattr(model.config, "_attn_implementation", None) or "eager"
        return Loaded(placed.eval(), tokenizer, kind, self.name, self.digest(), head, attention, origin=self.origin())


def read_config(folder: Path, labels: Sequence[str] | None, trust: bool = False) -> PretrainedConfig:
    """Read a checkpoint's configuration, with the task's classes put in.

    Raises:
        UserError: transformers does not know the architecture, or the file is broken.
    """
    from transformers import AutoConfig

    extra = {} if labels is None else {"num_labels": len(labels)}
    with readable(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, **extra)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
    return config


def kind_of(config: PretrainedConfig, asked: str | None, labels: Sequence[str] | None, where: str) -> str:
    """Return the kind of model (`KINDS`): what was asked for, else what task and checkpoint say.

    Raises:
        UserError: a task without classes on a checkpoint that cannot generate.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if asked not in (None, "auto"):
        return str(asked)
    if labels is not None:
        return kind_for(labels)
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


def weight_names(folder: Path) -> set[str]:
    """Return the names of the tensors in a folder's safetensors files; empty where there are none yet."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def _takes_kernels(model_class: Any, config: PretrainedConfig) -> bool:
    """Return whether the model takes attention kernels by name; older ones (Falcon, T5) bring classes of their own."""
    classes: Any = model_class
    if hasattr(model_class, "_model_mapping"):
        try:
            classes = model_class._model_mapping[type(config)]
        except KeyError:  # code that comes with the checkpoint
            return False
    options = classes if isinstance(classes, list | tuple) else [classes]
    return all(getattr(option, "_supports_attention_backend", False) for option in options)
