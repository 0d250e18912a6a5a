"""Models that others have wrapped or changed: attaching there would silently do the wrong thing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.errors import UserError

REPLACED = "its forward was replaced on the instance"
_DISTRIBUTED = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model on which adapters would not do what they say.

    Raises:
        UserError: names what it is wrapped in or holds, and what to do.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: an nn.Module is needed, not {type(model).__name__}")
    for kind, line in _WRAPPERS:
        found = next(((name, module) for name, module in model.named_modules() if kind(module)), None)
        if found is not None:
            name, module = found
            raise UserError(line.format(kind=type(module).__name__, name=name or "the model"))


def unsuitable(module: nn.Module) -> str | None:
    """Say why a linear layer cannot be replaced by an adapted one, or return None."""
    return REPLACED if "forward" in vars(module) and not _only_moves_inputs(module) else None


def _adapted(module: nn.Module) -> bool:
    return isinstance(module, AdaptedLayer)


def _of_peft(module: nn.Module) -> bool:
    return any(base.__module__.startswith("peft.") for base in type(module).__mro__)


def _compiled(module: nn.Module) -> bool:
    return hasattr(type(module), "dynamo_ctx") or type(module).__name__ == "OptimizedModule"


def _distributed(module: nn.Module) -> bool:
    return any(base.__name__ in _DISTRIBUTED for base in type(module).__mro__)


def _scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _offloaded(module: nn.Module) -> bool:
    return any(getattr(hook, "offload", False) for hook in _accelerate_hooks(module))


def _accelerate_hooks(module: nn.Module) -> list[object]:
    """Return accelerate's hooks of a module, which replace its forward."""
    hook = vars(module).get("_hf_hook")
    return list(getattr(hook, "hooks", [hook])) if hook is not None else []


def _only_moves_inputs(module: nn.Module) -> bool:
    """Whether accelerate replaced the forward, and only to move inputs, which the block around it does as well."""
    hooks = _accelerate_hooks(module)
    return bool(hooks) and all(type(hook).__name__ == "AlignDevicesHook" for hook in hooks)


_WRAPPERS: list[tuple[Callable[[nn.Module], bool], str]] = [
    (_adapted, "this model has adapters already; detach() them first"),
    (
        _of_peft,
        "{name} is PEFT's {kind}: take PEFT's adapters off first: unload(), merge_and_unload() or delete_adapter()",
    ),
    (_compiled, "{name} is compiled ({kind}): attach to the model itself, then call torch.compile on it"),
    (_distributed, "{name} is wrapped in {kind}: attach to the module inside before it is wrapped"),
    (_scripted, "{name} is a {kind}: its layers cannot be replaced; attach before scripting it"),
    (_offloaded, "{name} is offloaded by accelerate: its weights are not there between calls; load it without offload"),
]
