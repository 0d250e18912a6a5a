"""What a model family is, and the registry of them: a frozen dataclass each, whose fields conf/model may set.

Torch-free until something is loaded, so that names, options and digests are known without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lorax.errors import UserError, near
from lorax.models.attention import check as check_attention
from lorax.registry import Registry

if TYPE_CHECKING:
    from lorax.models.modality import Modality

HEADED = ("classification", "regression", "token_classification", "question_answering")
"""Kinds of task, and of model, whose answer is read off a head that a pretrained checkpoint may have no weights for."""
KINDS = ("causal", "seq2seq", *HEADED)


class Labels(list[str]):
    """What the outputs of a head stand for, and what the head looks at.

    Args:
        names: one for each output: the classes, the tags, `start` and `end`, or one name for a number.
        kind: of `HEADED`. A plain list of names in its place is for classification.
    """

    def __init__(self, names: Iterable[str], kind: str = "classification"):
        super().__init__(names)
        self.kind = kind


def kind_for(labels: Sequence[str]) -> str:
    """Return the kind of model whose head has these outputs."""
    return labels.kind if isinstance(labels, Labels) else "classification"


@dataclass
class Loaded:
    """A model ready to be adapted, and the facts about it that a run needs."""

    model: Any
    """The module, in eval mode: a transformers model where the data is text."""
    tokenizer: Any
    """Its tokenizer; None on a skeleton, and where the data is no text."""
    kind: str
    """One of `KINDS` for text; else a word for messages and records."""
    name: str
    """The name in the configuration."""
    digest: str
    """Of the pretrained weights; a fresh head is not part of it."""
    head: list[str] = field(default_factory=list)
    """Module names of freshly initialised heads: trained whole, and counted."""
    attention: str = "eager"
    """The attention kernel in use."""
    modality: Callable[[Loaded], Modality[Any]] | None = None
    """What data, loss and answer are; None: text, of the kind above."""
    origin: dict[str, str] = field(default_factory=dict)
    """Where the weights are from, where that can be said to others: hub (an id), commit, package."""


class Family(Protocol):
    """Where a model comes from. Fields are the options; all methods may be called any number of times."""

    name: str

    def digest(self) -> str:
        """Return a digest of the pretrained weights, from files, without loading them."""

    def skeleton(self, labels: Sequence[str] | None) -> Loaded:
        """Return the architecture on the meta device: names and shapes, no weights, no tokenizer."""

    def load(self, labels: Sequence[str] | None, dtype: str, device: str, seed: int) -> Loaded:
        """Return the model with its weights."""


_families: Registry[Family] = Registry("model", "lorax.models")
register, names = _families.register, _families.names


def build(spec: Mapping[str, Any]) -> Family:
    """Check a model's configuration without loading anything.

    Args:
        spec: the mapping of conf/model/*.yaml: `name`, an optional `family` (default: the name) and
            the family's own fields.

    Raises:
        UserError: unknown family or field, with near misses; a value the family does not take.
    """
    kind = spec.get("kind")
    if kind is not None and kind not in (*KINDS, "auto"):
        raise UserError(f"model.kind={kind}: {near(kind, [*KINDS, 'auto'])}")
    check_attention(spec.get("attention"))
    return _families.build(spec)


def load(
    spec: Mapping[str, Any],
    *,
    labels: Sequence[str] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> Loaded:
    """Load a model, silently.

    Args:
        spec: the mapping of conf/model/*.yaml.
        labels: class names of a classification task, or `Labels` of another task that is read off a head; the
            model then gets a fresh head, drawn from `seed`. None for generation.
        dtype: precision of the weights: float32, bfloat16, float16 or float64. `bf16-autocast`
            keeps float32 weights.
        device: auto, cpu, cuda, cuda:0, mps.
        seed: of the fresh head only.

    Raises:
        UserError: the weights are not there (with the command that fetches them), or an option is bad.
    """
    return build(spec).load(labels, dtype, device, seed)


def skeleton(spec: Mapping[str, Any], labels: Sequence[str] | None = None) -> Loaded:
    """Return the model on the meta device, for checking targets and ranks before a sweep starts."""
    return build(spec).skeleton(labels)


def digest(spec: Mapping[str, Any]) -> str:
    """Return the digest of a model's pretrained weights, from its files."""
    return build(spec).digest()
