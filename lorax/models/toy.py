"""A tiny Llama-type transformer with random weights and a real byte-level tokenizer, for tests.

Built in code: no file, no network, the same weights everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError
from lorax.models.attention import choose
from lorax.models.fresh_head import init_head, seeded
from lorax.models.placement import pick_device, torch_dtype
from lorax.models.registry import HEADED, Loaded, kind_for, register
from lorax.records import canonical

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 1
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@register("toy")
@dataclass(frozen=True, kw_only=True)
class Toy:
    """A random Llama: 2 layers of 64, four heads on two key heads, bytes as tokens."""

    name: str = "toy"
    kind: str = "auto"
    """auto: causal, or what the task reads off a head."""
    hidden: int = 64
    layers: int = 2
    context: int = 512
    """Longest input in tokens."""
    weights_seed: int = 0
    """Draws the weights: another seed is another base model."""
    attention: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "causal", *HEADED):
            raise UserError(f"model.kind={self.kind}: toy is causal or one of {', '.join(HEADED)}")
        if self.hidden < 8 or self.hidden % 8:
            raise UserError(f"model.hidden={self.hidden}: must be a multiple of 8")
        for key, most in (("hidden", 8192), ("layers", 256), ("context", 131_072)):
            if not 1 <= getattr(self, key) <= most:
                raise UserError(f"model.{key}={getattr(self, key)}: must be between 1 and {most:,}")

    def digest(self) -> str:
        """Return a digest of what the weights are drawn from."""
        drawn = {key: value for key, value in asdict(self).items() if key not in ("name", "kind", "attention")}
        return hashlib.sha256(canonical(["toy", VERSION, drawn]).encode()).hexdigest()[:32]

    def skeleton(self, labels: Sequence[str] | None) -> Loaded:
        """Return the architecture on the meta device."""
        import torch

        with torch.device("meta"):
            return self._wrap(self._model(labels), None, labels, "eager")

    def load(self, labels: Sequence[str] | None, dtype: str, device: str, seed: int) -> Loaded:
        """Return the model; weights from `weights_seed`, a classification head from `seed`."""
        import torch

        device = pick_device(device)
        attention = choose(self.attention, device)
        with torch.random.fork_rng(devices=[]):
            model = self._model(labels, attention)
            self._draw(model)
        loaded = self._wrap(model, tokenizer(), labels, attention)
        init_head(model, loaded.head, seed)
        model.to(device=device, dtype=torch_dtype(dtype))
        return loaded

    def _model(self, labels: Sequence[str] | None, attention: str = "eager") -> Any:
        import transformers
        from transformers import LlamaConfig

        options: dict[str, Any] = {
            "hidden_size": self.hidden, "intermediate_size": 2 * self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": self.context,
            "vocab_size": 256 + len(SPECIAL), "pad_token_id": 256, "eos_token_id": 257, "bos_token_id": None,
            "tie_word_embeddings": False, "attn_implementation": attention,
        }  # fmt: skip
        config = LlamaConfig(**options)
        kind = self._kind(labels)
        if kind in HEADED:
            config.num_labels = len(labels or ())
            config.problem_type = "single_label_classification"
        classes = {"token_classification": "TokenClassification", "question_answering": "QuestionAnswering",
                   "causal": "CausalLM"}  # fmt: skip
        return getattr(transformers, f"LlamaFor{classes.get(kind, 'SequenceClassification')}")(config)

    def _kind(self, labels: Sequence[str] | None) -> str:
        if self.kind in HEADED and labels is None:
            raise UserError(f"model=toy model.kind={self.kind}: the task has no classes")
        if labels is None or self.kind == "causal":
            return "causal"
        return kind_for(labels) if self.kind == "auto" else self.kind

    def _wrap(
        self,
        model: PreTrainedModel,
        tokens: PreTrainedTokenizerBase | None,
        labels: Sequence[str] | None,
        attention: str,
    ) -> Loaded:
        kind = self._kind(labels)
        head = ["qa_outputs" if kind == "question_answering" else "score"] if kind in HEADED else []
        return Loaded(model.eval(), tokens, kind, self.name, self.digest(), head, attention)

    def _draw(self, model: PreTrainedModel) -> None:
        """Draw each parameter from its name: matrices N(0, 1/n), embeddings N(0, 1), norms are 1."""
        import torch

        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            body = name.replace("transformer.", "model.", 1)  # as one of transformers' heads calls the body
            generator = seeded(f"toy {self.weights_seed} {body}")
            scale = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
            with torch.no_grad():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def tokenizer() -> PreTrainedTokenizerBase:
    """Return the byte-level tokenizer: one token per byte, special tokens for the chat roles."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        chat_template=TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )
