"""Where bottleneck adapters stand: submodules with one tensor in and out, and how wide those are."""

from __future__ import annotations

from torch import nn

from lorax.adapters.kinds import is_linear, shape_of
from lorax.architecture.blocks import Block, find_blocks
from lorax.errors import UserError


def blocks_of(model: nn.Module) -> list[Block]:
    """Return the transformer blocks of a model, on the meta device too, with the names of their parts."""
    modules = dict(model.named_modules())
    linear = {name: shape_of(module) for name, module in modules.items() if name and is_linear(module)}
    return find_blocks(modules, linear)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with one weight a channel, so that its input and its output are of one kind."""
    weight = module._parameters.get("weight")
    return not module._modules and weight is not None and weight.ndim == 1


def width_of(name: str, module: nn.Module) -> tuple[int, int]:
    """Return (m, n) = (numbers out, numbers in) of a submodule: those of its last and its first linear layer.

    Args:
        name: the module's name, for the message.
        module: a linear layer, a norm, or a module with linear layers inside.

    Raises:
        UserError: it is none of these.
    """
    if is_linear(module):
        return shape_of(module)
    if is_norm(module):
        channels = module._parameters["weight"]
        return (len(channels), len(channels)) if channels is not None else (0, 0)
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise UserError(f"{name} is a {type(module).__name__}, which is not called: name the modules in it")
    inside = [shape_of(layer) for layer in module.modules() if is_linear(layer)]
    if not inside:
        raise UserError(
            f"{name} ({type(module).__name__}): a linear layer, a norm or a module with linear layers is needed"
        )
    return inside[-1][0], inside[0][1]
