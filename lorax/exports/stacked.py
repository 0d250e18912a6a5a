"""Experts in PEFT's format: their parameter is named by `target_parameters`, and its factors hold all its experts.

lora_A: (E r, p) expert after expert        lora_B: (q, r E) rank after rank, experts next to each other

(p, q) are (n, m), or (m, n) where PEFT reads the parameter the other way round. PEFT wraps the module that holds
the parameter, once more for each further one; what lies in it then has `base_layer` in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lorax.errors import UserError
from lorax.exports.adapted import AdaptedModel

Pair = tuple[Tensor, Tensor]
"""(B, A), (m, r) and (r, n)."""
_WAYS = "export_merged and save keep it"


@dataclass
class Stack:
    """One parameter with adapted experts in it."""

    parameter: str
    """Its full name."""
    count: int
    """E, how many experts it holds."""
    swapped: bool
    """Whether PEFT's in and out of an expert are ours exchanged."""
    outside: int = 0
    """How many of PEFT's wrappers of the same module lie around its own."""
    experts: dict[int, str] = field(default_factory=dict)
    """The adapted ones: {index: layer}."""

    @property
    def owner(self) -> str:
        """The name of the module that holds it."""
        return self.parameter.rpartition(".")[0]

    def tensors(self, pairs: Mapping[str, Pair], r: int) -> dict[str, Tensor]:
        """Return what stock PEFT loads, by name in the module as it is wrapped.

        Args:
            pairs: {layer: (B, A)} of rank at most r; an expert that is not adapted gets zeros.
            r: the file's rank.
        """
        found = {index: pairs[name] for index, name in self.experts.items()}
        first_B, first_A = next(iter(found.values()))
        left = first_B.new_zeros(self.count, first_B.shape[0], r)
        right = first_A.new_zeros(self.count, r, first_A.shape[1])
        for index, (B, A) in found.items():
            left[index, :, : B.shape[1]], right[index, : A.shape[0]] = B, A
        if self.swapped:
            left, right = right.mT, left.mT
        return {
            "base_layer." * self.outside + "lora_A.weight": right.flatten(0, 1).contiguous(),
            "base_layer." * self.outside + "lora_B.weight": left.permute(1, 2, 0).flatten(1).contiguous(),
        }


def stacks_of(adapted: AdaptedModel) -> dict[str, Stack]:
    """Return the parameters that hold this run's experts, in the order in which PEFT wraps them.

    The model is as its base now.

    Raises:
        UserError: PEFT has no place for one of them; names it and the reason.
    """
    found: dict[str, Stack] = {}
    turned = [name for name, layer in adapted.layers.items() if layer.transposed and name not in adapted.experts]
    if turned and len(adapted.layers.keys() & adapted.experts.keys()):
        raise UserError(f"cannot export {turned[0]}: PEFT takes no layer stored as (in, out) beside experts; {_WAYS}")
    for name, layer in adapted.layers.items():
        if (expert := adapted.experts.get(name)) is None:
            continue
        if expert.parameter not in found:
            if not expert.parameter.rpartition(".")[0]:
                raise UserError(f"cannot export {name}: the model itself holds it, and PEFT wraps submodules; {_WAYS}")
            inwards = _is_transposed(adapted.model, expert.parameter)
            if inwards and expert.count == 1:
                raise UserError(f"cannot export {name}: PEFT adds a lone expert's change the wrong way round; {_WAYS}")
            found[expert.parameter] = Stack(expert.parameter, expert.count, layer.transposed != inwards)
        found[expert.parameter].experts[expert.index] = name
    order = {name: place for place, (name, _) in enumerate(adapted.model.named_parameters(remove_duplicate=False))}
    found = dict(sorted(found.items(), key=lambda item: order[item[0]]))
    for place, stack in enumerate(found.values()):
        stack.outside = sum(other.owner == stack.owner for other in list(found.values())[place + 1 :])
    return found


def wrapped(name: str, stacks: Mapping[str, Stack]) -> str:
    """Return the name of a module or tensor after PEFT has wrapped the modules around it."""
    owners = [stack.owner for stack in stacks.values() if name.startswith(f"{stack.owner}.")]
    for owner in sorted(set(owners), key=len, reverse=True):  # the innermost first: outer names stay as they are
        name = f"{owner}." + "base_layer." * owners.count(owner) + name[len(owner) + 1 :]
    return name


def _is_transposed(model: nn.Module, parameter: str) -> bool:
    """Whether PEFT takes the parameter for (E, in, out): a module that does not say so is (E, out, in) to it."""
    owner = model.get_submodule(parameter.rpartition(".")[0])
    return bool(getattr(owner, "is_transposed", False))
