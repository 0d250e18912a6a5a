"""Which modality a model has: its own, or that of its kind of text. No other place asks for the kind of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError, near
from lorax.forward.classification import ClassifiedText
from lorax.forward.encoders.numbers import NumberedText
from lorax.forward.encoders.questions import QuestionedText
from lorax.forward.encoders.tags import TaggedText
from lorax.forward.generation import CausalText, Seq2SeqText

if TYPE_CHECKING:
    from lorax.models.modality import Modality
    from lorax.models.registry import Loaded

TEXT: Mapping[str, Callable[[Loaded], Modality[Any]]] = {
    "causal": CausalText,
    "classification": ClassifiedText,
    "seq2seq": Seq2SeqText,
    "regression": NumberedText,
    "token_classification": TaggedText,
    "question_answering": QuestionedText,
}


def modality_of(loaded: Loaded) -> Modality[Any]:
    """Return what encodes, batches, scores and predicts for a model.

    Args:
        loaded: a model, or a skeleton where only `task_kinds` is asked for.

    Raises:
        UserError: a kind that is no kind of text, without a modality of its own; names near misses.
    """
    make = loaded.modality or TEXT.get(loaded.kind)
    if make is None:
        raise UserError(f"model={loaded.name}: kind {loaded.kind!r} is no kind of text; {near(loaded.kind, TEXT)}")
    return make(loaded)
