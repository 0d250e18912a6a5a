"""The frozen base through torch.compile, layer by layer; adapted layers run between the compiled pieces, as they are.

What is compiled is what lies between the adapted layers: norms, rotary embeddings, activations, attention, sums. An
adapted layer breaks the graph: its fused form adds gradients to buffers in its backward pass, which a compiler cannot
take into a graph of its own, and in plain operations its lanes could not be held in one buffer. Large products are
library calls either way. Under a recorder the breaks cost nothing: what is replayed has no Python in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from lorax.adapters.adapted import AdaptedLayer

BACKEND = "inductor"
VARIANTS = 64
"""Forms of one piece of code that torch may compile: shapes of batch, times the places in it that differ."""


class CompiledBase:
    """Compiles the layers of a model while it is open, each shape of batch when it comes first.

    Args:
        model: with adapters in it.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.layers: list[nn.Module] = []
        """Those that are compiled now."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Compile inside; afterwards the model is as before."""
        from torch._dynamo import config

        with ExitStack() as stack:
            stack.callback(self.give_up)
            stack.enter_context(_apart(self.model))
            stack.enter_context(config.patch(recompile_limit=VARIANTS))
            self.layers = layers_of(self.model)
            for layer in self.layers:
                layer.compile(backend=BACKEND, dynamic=False)
            yield

    def give_up(self) -> None:
        """Run the layers as they are from now on."""
        for layer in self.layers:
            layer._compiled_call_impl = None
        self.layers = []


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the elements of the model's outermost lists of modules that hold adapted layers; else the model."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside and _adapted(module):
            found += list(module)
            inside |= set(module.modules())
    return found or [model]


def why_not(device: torch.device) -> str | None:
    """Return why torch.compile does not work on a device, or None: a small function is compiled, both ways."""

    def small(x: Tensor) -> Tensor:
        return (x.sin() * 2 + 1).sum()

    x = torch.ones(8, device=device, requires_grad=True)
    try:
        with torch.enable_grad():
            torch.compile(small, backend=BACKEND, dynamic=False)(x).backward()
    except (RuntimeError, OSError, ImportError) as error:
        return reason(error)
    return None


def reason(error: Exception) -> str:
    """Return what a compiler says first, in one line: what its backend raised, where it did."""
    from torch._dynamo.exc import BackendCompilerFailed

    inner = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
    return str(inner).strip().partition("\n")[0][:150]


def _adapted(module: nn.Module) -> bool:
    return any(isinstance(each, AdaptedLayer) for each in module.modules())


@cache
def _disabled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function each time, so that what was compiled around it serves the next training too."""
    return torch.compiler.disable(forward, reason="adds gradients to buffers")


@contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Keep adapted layers out of what is compiled."""
    classes = {type(module) for module in model.modules() if isinstance(module, AdaptedLayer)}
    before = {each: each.__dict__.get("forward") for each in classes}
    for each in classes:
        each.forward = _disabled(each.forward)
    try:
        yield
    finally:
        for each, form in before.items():
            if form is None:
                del each.forward
            else:
                each.forward = form
