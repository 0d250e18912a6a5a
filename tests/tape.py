"""A CPU twin of CUDA graphs: every dispatched operation is written down once and done again on the same tensors."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers.utils import import_utils

_FORBIDDEN = {
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.is_nonzero.default,
    torch.ops.aten.lift_fresh.default, torch.ops.aten.random_.default, torch.ops.aten.randint.default,
}  # fmt: skip


class Tape(TorchDispatchMode):
    """Records as a CUDA graph does: no host code runs again, nothing may be read back or made of lists meanwhile.

    On a CPU what is recorded is done as well; `undo` takes it back from the tensors that were there before.
    """

    def __init__(self):
        super().__init__()
        self.calls, self._own, self._before = [], set(), {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _FORBIDDEN:
            raise RuntimeError(f"operation not permitted while recording: {function}")
        for argument, value in zip(function._schema.arguments, (*args, *kwargs.values()), strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(value):
                    self._keep(tensor)
        for tensor in _tensors(kwargs.get("out")):
            self._keep(tensor)
        result = function(*args, **kwargs)
        made = _storages(result) - _storages([args, kwargs])
        if made or not function.is_view:  # `reshape` and its kin are views or copies
            self.calls.append((function, args, kwargs, _tensors(result)))
            self._own |= made
        return result

    def _keep(self, tensor):
        if tensor.untyped_storage().data_ptr() not in self._own:
            self._before.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), (tensor, tensor.clone()))

    def undo(self):
        for tensor, value in self._before.values():
            tensor.copy_(value)

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, before in self.calls:
                for old, new in zip(before, _tensors(function(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Tapes:
    """A recorder on tapes, which counts replays."""

    def __init__(self):
        self.tapes, self.replays = [], 0

    def open(self):
        return nullcontext()

    def record(self, work):
        tape = Tape()
        with tape, mock.patch.object(import_utils, "is_cuda_stream_capturing", lambda: True):  # transformers asks
            work()
        with torch.no_grad():
            tape.undo()
        self.tapes.append(tape)

        def replay():
            self.replays += 1
            tape.replay()

        return replay


def _storages(value):
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(value)}


def _tensors(value):
    return [each.detach() for each in tree_flatten(value)[0] if isinstance(each, torch.Tensor)]
