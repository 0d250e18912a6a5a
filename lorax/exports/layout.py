"""Where each thing that was trained goes in PEFT's format, or why that format cannot hold it.

an adapted layer               lora_A, lora_B; found by `target_modules`, or by `target_parameters` where
                               PEFT takes such names for experts of a mixture
experts in one parameter       lora_A, lora_B of all of them, found by `target_parameters` (`stacked`)
the bias of an adapted layer   `bias="lora_only"`
another trained parameter      its module, whole, in `modules_to_save`, under every name that it has
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lorax.errors import UserError
from lorax.exports.adapted import AdaptedModel, Expert

_WAYS = "export_merged and save keep it"
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""PEFT's task by the end of the model's class name."""
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Ends of names of modules that PEFT adds to `modules_to_save` of a task."""
_PASSED = ("input_ids", "attention_mask", "inputs_embeds", "labels")
"""What PEFT's classes for a task hand to the model, asked for or not."""


@dataclass
class Layout:
    """The places of one export."""

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Modules saved whole: {name: its state}."""
    listed: list[str] = field(default_factory=list)
    """Those that `modules_to_save` names."""
    biases: dict[str, Tensor] = field(default_factory=dict)
    """Trained biases of adapted layers, by layer."""
    tied: bool = False
    """Whether PEFT can keep the trained input embeddings and their tied output one tensor."""
    task: str | None = None
    """PEFT's `task_type`."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors beside the low-rank factors, by name in the model."""
        found = {f"{name}.{key}": value for name, state in self.modules.items() for key, value in state.items()}
        found |= {f"{name}.base_layer.bias": value for name, value in self.biases.items()}
        return {key: value.detach().cpu().clone().contiguous() for key, value in found.items()}


def layout(adapted: AdaptedModel) -> Layout:
    """Find the place of everything that trains beside the adapters; the model is as its base now.

    Raises:
        UserError: PEFT's format has no place for it; names the parameter and the reason.
    """
    plan, model = Layout(), adapted.model
    places = places_of(model)
    owners: dict[str, nn.Module] = {}
    for first, parameter in adapted.beside.items():
        for place in places[id(parameter)]:
            owner, _, leaf = place.rpartition(".")
            if owner in adapted.places and leaf == "bias" and len(places[id(parameter)]) == 1:
                plan.biases[owner] = parameter
            elif owner in adapted.places:
                ways = _WAYS if len(places[id(parameter)]) == 1 else "save keeps it"  # a tied weight is not merged
                raise UserError(f"cannot export {first}: PEFT has no place for it beside an adapter on {owner}; {ways}")
            elif not owner:
                raise UserError(f"cannot export {first}: the model itself holds it, and PEFT saves submodules; {_WAYS}")
            else:
                owners[owner] = model.get_submodule(owner)
        if len(places[id(parameter)]) > 1:
            plan.tied |= _ties(
                model, parameter, [model.get_submodule(p.rpartition(".")[0]) for p in places[id(parameter)]]
            )
    _refuse_shared(adapted)
    outermost = [name for name in sorted(owners) if not any(name.startswith(f"{other}.") for other in owners)]
    for name in outermost:
        for taken in matched(model, [name]):
            if line := _clash(taken, name, adapted.places):
                raise UserError(f"cannot export {name}: {line}; {_WAYS}")
            own = [expert for layer, expert in adapted.experts.items() if layer in adapted.layers]
            if inside := [e.parameter for e in own if taken.startswith(f"{module_of(e)}.")]:
                raise UserError(
                    f"cannot export {name}: PEFT renames what lies beside adapted experts ({inside[0]}); {_WAYS}"
                )
            plan.modules[taken] = _state(model, taken)
    plan.listed = outermost
    plan.task = _task(model, plan, adapted.places)
    return plan


def places_of(model: nn.Module) -> dict[int, list[str]]:
    """Return every name of every base parameter, by the parameter's id."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    return places


def matched(model: nn.Module, ends: Iterable[str]) -> list[str]:
    """Return the modules that PEFT saves whole for names in `modules_to_save`: it compares ends, dots or not."""
    ends = tuple(ends)
    return [name for name, _ in model.named_modules(remove_duplicate=False) if name.endswith(ends)]


def target_modules(model: nn.Module, names: list[str]) -> list[str] | str:
    """Return the full names; as a regular expression where PEFT's suffix rule would catch other modules too."""
    wanted = set(names)
    for other, _ in model.named_modules():
        parts = other.split(".")
        if any(".".join(parts[start:]) in wanted for start in range(1, len(parts))):
            return "|".join(re.escape(name) for name in names)
    return names


def expert_like(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the layers whose last name PEFT takes for an expert of a mixture, in models that have such experts.

    Since transformers stores the experts as one parameter, PEFT turns `target_modules` that end in the experts'
    old names (gate_proj, up_proj, down_proj; w1, w2, w3) into expert parameters, dense layers of that name too.
    A layer named by `target_parameters`, as <name>.weight, is left alone.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    kind = getattr(getattr(model, "config", None), "model_type", None)
    leaves = {"gate"}
    for conversion in (get_checkpoint_conversion_mapping(kind) if kind else None) or []:
        targets = conversion.target_patterns
        for pattern in (
            conversion.source_patterns if any(t.endswith(("gate_up_proj", "down_proj")) for t in targets) else ()
        ):
            leaves |= set(pattern.removesuffix(".weight").split(".")[-1:])
    return [name for name in names if len(leaves) > 1 and name.rpartition(".")[2] in leaves]


def module_of(expert: Expert) -> str:
    """Return the name of the module that holds an expert's parameter."""
    return expert.parameter.rpartition(".")[0]


def _refuse_shared(adapted: AdaptedModel) -> None:
    """Refuse a layer that several modules hold: PEFT replaces it in the first one alone."""
    first: dict[str, str] = {}
    for place, name in adapted.places.items():
        other = first.setdefault(name, place)
        depth = 3 if name in adapted.experts else 1  # <parent>.<module>.<parameter>.<e>
        parents = [adapted.model.get_submodule(_parent(where, depth)) for where in (other, place)]
        if parents[0] is not parents[1]:
            raise UserError(f"cannot export {place}: it is the same layer as {other}, and PEFT adapts one; {_WAYS}")


def _parent(place: str, depth: int) -> str:
    return ".".join(place.split(".")[:-depth])


def _state(model: nn.Module, name: str) -> dict[str, Tensor]:
    return dict(model.get_submodule(name).state_dict())


def _clash(taken: str, listed: str, adapted: Iterable[str]) -> str | None:
    """Say why a module cannot be saved whole beside the adapters, or None."""
    inside = re.compile(rf"(?:^|.*\.){re.escape(listed)}(?:$|\..*)")  # PEFT leaves adapters there out
    for other in adapted:
        if other == taken or other.startswith(f"{taken}.") or inside.match(other):
            return f"PEFT would save {taken} whole, in which {other} is adapted"
    return None


def _ties(model: nn.Module, parameter: Tensor, owners: list[nn.Module]) -> bool:
    """Whether `ensure_weight_tying` gives the same: input embeddings and linear layers without a bias."""
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    others = [owner for owner in owners if owner is not embeddings]
    config = getattr(model, "config", None)
    plain = all(isinstance(other, nn.Linear) and other.bias is None for other in others)
    known = bool(getattr(config, "tie_word_embeddings", False))
    return embeddings is not None and getattr(embeddings, "weight", None) is parameter and plain and known


def _task(model: nn.Module, plan: Layout, adapted: Iterable[str]) -> str | None:
    """Return PEFT's task of the model; its head then travels whole, as PEFT's class for the task asks for it."""
    kind = type(model)
    task = next((task for end, task in _TASKS.items() if kind.__name__.endswith(end)), None)
    if task is None or getattr(model, "main_input_name", None) != "input_ids" or not _takes(kind.forward):
        return None
    if task == "SEQ_2_SEQ_LM" and not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and not hasattr(model, "prepare_inputs_for_generation"):
        return None
    heads = matched(model, _HEADS.get(task, ()) or ("\0",))
    if any(_clash(head, end, adapted) for head in heads for end in _HEADS[task]):
        return None
    for head in heads:
        if any(head == name or head.startswith(f"{name}.") for name in plan.modules):
            continue
        for inner in [name for name in plan.modules if name.startswith(f"{head}.")]:
            del plan.modules[inner]
        plan.listed = [*(name for name in plan.listed if not name.startswith(f"{head}.")), head]
        plan.modules[head] = _state(model, head)
    return task


def _takes(forward: Any) -> bool:
    parameters = inspect.signature(forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return open_ended or set(_PASSED) <= set(parameters)
