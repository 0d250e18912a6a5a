"""A frozen base that is spread over several processes (FSDP2), each with runs of its own.

Every process holds a share of each block's weights, and all gather a block together, just before it computes. So all
must run the same passes in the same order, whatever their runs do: `Lockstep` has them agree before each pass, and who
has none to run computes an empty one along. Adapters are whole in their process; no gradient leaves it.

Embeddings, the last norm and the head stay whole in every process. Tested on two CPU processes (gloo); not run on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from lorax.adapters.adapted import AdaptedLayer
from lorax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorax.adapters.face import Trainable
    from lorax.models.registry import Loaded

_FORWARD, _BACKWARD = 0, 1


def shard(loaded: Loaded, adapters: Sequence[Trainable], device: torch.device) -> Lockstep:
    """Spread a base's blocks over all processes, adapters left out; call it in each, after the adapters are installed.

    Args:
        loaded: a causal model with its adapters, on the CPU, the same weights in every process.
        adapters: of this process; none where it has no run.
        device: of this process.

    Raises:
        UserError: the model has no blocks that are known.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = loaded.model
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = blocks_of(model)
    layers = [module for module in model.modules() if isinstance(module, AdaptedLayer)]
    own = {value for layer in layers for value in layer.lanes.parameters()}
    whole = [value for block in blocks for value in block.parameters() if value not in own]
    for value in whole:  # a process without runs has installed nothing that froze it
        value.requires_grad_(False)
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=own)
    rest = {value for value in model.base_model.parameters() if not isinstance(value, DTensor)}
    fully_shard(model.base_model, mesh=mesh, ignored_params=rest | own)
    for value in whole:  # modules that adapters replace still hold it until they come off
        value.data = value.new_empty(0)
    for module in model.modules():  # what is in no block; blocks are there already
        for value in module.parameters(recurse=False):
            if not isinstance(value, DTensor):
                value.data = value.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return Lockstep(model, adapters)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are repeated from the bottom of a model to its top: the elements of its longest list.

    Raises:
        UserError: it has none.
    """
    lists: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    lists = [found for found in lists if any(True for _ in found.parameters())]
    if not lists:
        raise UserError("train.shard=fsdp: this model has no list of blocks to spread")
    return list(max(lists, key=lambda found: sum(value.numel() for value in found.parameters())).children())


class Lockstep:
    """Has every process run the same passes through the base.

    Before a pass all say which kind they want, forward alone or with backward. Each wanted kind is then run by all,
    once, forward first; who did not want it computes one token through the bare base.

    Args:
        model: with a sharded `base_model`.
        adapters: of this process: off while it computes for others.
    """

    def __init__(self, model: PreTrainedModel, adapters: Sequence[Trainable]):
        self.trunk: Any = model.base_model
        self.adapters = list(adapters)
        self.passes = 0
        """That this process has run, empty ones too."""
        self._serving, self._owed = False, False
        self._device = next(value.device for value in model.parameters())
        self._hooks = [
            self.trunk.register_forward_pre_hook(self._before, prepend=True),
            self.trunk.register_forward_hook(self._after),
            model.get_input_embeddings().register_forward_hook(_anchor),
        ]
        self._empty(_FORWARD)  # the buffers that blocks are gathered into must not be made in inference mode

    def idle_along(self) -> None:
        """Run the passes that others want, until none wants one: called when this process has no more of its own."""
        while any(wanted := self._agree(None)):
            for kind in (_FORWARD, _BACKWARD):
                if wanted[kind]:
                    self._empty(kind)

    def _agree(self, mine: int | None) -> list[bool]:
        wanted = torch.zeros(2, device=self._device)
        if mine is not None:
            wanted[mine] = 1
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        return [bool(value) for value in wanted.tolist()]

    def _before(self, module: nn.Module, args: Any) -> None:
        if self._serving:
            return
        mine = _BACKWARD if torch.is_grad_enabled() else _FORWARD
        wanted = self._agree(mine)
        if mine == _BACKWARD and wanted[_FORWARD]:
            self._empty(_FORWARD)
        self._owed = mine == _FORWARD and wanted[_BACKWARD]
        self.passes += 1

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._owed and not self._serving:
            self._owed = False
            self._empty(_BACKWARD)

    def _empty(self, kind: int) -> None:
        """Run one token through the bare base, and back where the others go back."""
        self.passes += 1
        token = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        with self._alone(), torch.inference_mode(False), torch.set_grad_enabled(kind == _BACKWARD):
            hidden = self.trunk(input_ids=token, use_cache=False)[0]
            if kind == _BACKWARD:
                hidden.sum().backward()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with ExitStack() as stack:
            for each in self.adapters:
                stack.enter_context(each.disabled())
            self._serving = True
            try:
                yield
            finally:
                self._serving = False

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()


def _anchor(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Have every block's output need a gradient, so that all processes go back through all blocks."""
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()
    return output
