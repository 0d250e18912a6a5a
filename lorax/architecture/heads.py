"""Heads: the modules of a classifier that are trained whole beside the adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lorax.errors import UserError, near

HEADS = ("score", "classifier", "classification_head", "qa_outputs")
"""How transformers' models call the head for classes."""
HEAD = "output head"
CLASSES = "a head for classes, which stays as it is (train_head=True trains it)"
_CLASSIFIES = re.compile(r"For\w*(?:Classif|MultipleChoice|QuestionAnswering|XVector|NextSentence)")


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """Return a transformers model's output head for tokens, if it has one."""
    get_output: Any = getattr(model, "get_output_embeddings", None)
    found = get_output() if get_output is not None else None
    return found if isinstance(found, nn.Module) else None


def output_heads(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return {name: reason} of what a model ends in: its head for tokens or for classes.

    A model in a wrapper's attribute has its head for tokens found too.
    """
    outputs = {id(output) for module in modules.values() if (output := output_embeddings(module)) is not None}
    names = {name: HEAD for name, module in modules.items() if id(module) in outputs}
    return {name: CLASSES for name in HEADS if name in modules} | names


def fresh_heads(model: nn.Module) -> tuple[list[str], bool | None]:
    """Return the modules that a classifier trains whole, and whether they are known to be fresh.

    Those of transformers' classifiers outside the pretrained body. After `from_pretrained` the ones that the checkpoint
    had no weights for are known, and a pooler without weights is one of them; where all have weights, or nothing is
    known, all are taken, as PEFT does for SEQ_CLS.

    Returns:
        (names, True): the checkpoint had no weights for them; (names, False): it had; (names, None): not known;
        ([], None): the model is no classifier.
    """
    if not _CLASSIFIES.search(type(model).__name__):
        return [], None
    prefix = getattr(model, "base_model_prefix", "")
    body = prefix if isinstance(getattr(model, prefix, None), nn.Module) else ""
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()} - {""}
    outside = {name for name in owners if body and name.partition(".")[0] != body}
    outside |= {name for name in owners if name.partition(".")[0] in HEADS}
    loaded = {name for name, p in model.named_parameters() if getattr(p, "_is_hf_initialized", False)}
    if not loaded:
        return _tops(outside), None
    fresh = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name not in loaded}
    fresh = {name for name in fresh if name in outside or any("pooler" in part for part in name.split("."))}
    return (_tops(fresh), True) if fresh & outside else (_tops(outside), False)


def trained_whole(
    model: nn.Module, wanted: bool | Sequence[str] | None, targets: str | Sequence[str] = "all-linear"
) -> tuple[list[str], bool | None]:
    """Return the modules that train whole beside the adapters, and whether they are known to be fresh.

    Args:
        model: with nothing installed.
        wanted: None: a classifier's heads; True: the same, and it must have some; False: none; names or name suffixes
            of modules: those.
        targets: as `lorax.attach`: a head that a list of them names is adapted, not trained whole.

    Raises:
        UserError: no head is found, or a name matches no module with parameters.
    """
    if wanted is None or wanted is True:
        heads, fresh = fresh_heads(model)
        if wanted and not heads:
            heads = _tops(set(output_heads(dict(model.named_modules()))))
        if not isinstance(targets, str):
            named = {name for name, _ in model.named_modules() if any(_ends(name, target) for target in targets)}
            heads = [head for head in heads if not any(name == head or name.startswith(f"{head}.") for name in named)]
        if wanted and not heads:
            raise UserError(f"train_head=True: {type(model).__name__} has no head that is known; name its modules")
        return heads, fresh
    if wanted is False:
        return [], None
    if isinstance(wanted, str):
        wanted = [wanted]
    if not isinstance(wanted, Sequence):
        raise UserError(f"train_head={wanted!r}: True, False, None or a list of module names is needed")
    owners = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    chosen: set[str] = set()
    for target in wanted:
        matching = {name for name in owners if _ends(name, target)}
        if not matching:
            names = owners if "." in str(target) else sorted({name.rpartition(".")[2] for name in owners})
            raise UserError(f"train_head={target!r} matches no module with weights; {near(target, names)}")
        chosen |= matching
    return _tops(chosen), None


def said_of_heads(heads: Sequence[str], fresh: bool | None) -> str | None:
    """Return the line about heads that train whole though they may not be fresh, or None."""
    if not heads or fresh:
        return None
    came = "came with the checkpoint" if fresh is False else "may be fresh"
    return f"{', '.join(heads)} {came} and trains whole beside the adapters; train_head=False keeps it as it is"


def _ends(name: str, target: object) -> bool:
    return name == target or name.endswith(f".{target}")


def _tops(names: set[str]) -> list[str]:
    """Return the names that lie in no other of them."""
    return sorted(name for name in names if not any(name.startswith(f"{other}.") for other in names))
