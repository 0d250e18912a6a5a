"""NamedAdapters: several adapters on one base, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorax.adapters.files.trainer import patch_checkpoints
from lorax.adapters.routed.routing import BASE, Routing
from lorax.errors import UserError, near
from lorax.loading.named.generation import Expanded

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters
    from lorax.adapters.installation import Installation

_KEPT = "_lorax_named"
"""The attribute of a model that holds its collection."""
Rows = Sequence["str | None"]


def of_model(model: nn.Module) -> NamedAdapters | None:
    """Return the collection on a model, if there is one."""
    return vars(model).get(_KEPT)


class NamedAdapters:
    """Adapters of different tasks, methods and ranks on one frozen base; one of them, or none, is in use.

    Made by `lorax.load(model, path, name=...)`. Switching writes no weight. `adapters[name]` is the handle of one.

        adapters.use("sql")                        the whole batch, until the next use
        adapters.use(None)                         the base alone
        with adapters.use("chat"): ...             for a while
        with adapters.use(rows=["sql", "chat", None]): model.generate(...)

    Args:
        installation: the model with its adapted layers.
    """

    def __init__(self, installation: Installation):
        self.installation = installation
        self._handles: dict[str, Adapters] = {}
        self._now: tuple[str | None, tuple[str | None, ...] | None] = (None, None)
        self._expanded: Expanded | None = None
        vars(installation.model)[_KEPT] = self
        installation.on_restore(self._forget)

    @property
    def model(self) -> nn.Module:
        """The model on which they are."""
        return self.installation.model

    @property
    def active(self) -> str | None:
        """The adapter that is in use; None: the base alone, or rows of several."""
        return self._now[0]

    def names(self) -> list[str]:
        """Return the names, in the order of loading."""
        self._drop_detached()
        return list(self._handles)

    def __getitem__(self, name: str) -> Adapters:
        """Return the handle of one.

        Raises:
            UserError: no such name.
        """
        self._drop_detached()
        if name not in self._handles:
            raise UserError(f"no adapter {name!r}; {near(name, self._handles)}")
        return self._handles[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def add(self, name: str, adapters: Adapters) -> None:
        """Enter one that is installed; it is in use from now on."""
        self._handles[name] = adapters
        self._guard_checkpoints()
        self.use(name)

    def use(self, name: str | None = None, *, rows: Rows | None = None) -> Use:
        """Let the next batches use one adapter, or each row its own; no weight is written.

        Args:
            name: of the adapter for the whole batch; None: the base alone.
            rows: instead: the name, or None, for every row of the batch. `model.generate` may repeat each row, for
                beams or several answers.

        Returns:
            What puts back, at the end of a `with` block, what was in use before.

        Raises:
            UserError: an unknown name, both or an empty list, or an adapter that is merged into the weights.
        """
        before = self._now
        merged = next((one for one, handle in self._handles.items() if handle.merged), None)
        if merged is not None and (rows is not None or name != merged):
            raise UserError(f"adapter {merged!r} is merged into the weights, which all share; unmerge() it first")
        if rows is None:
            if name is not None:
                self[name]  # refuses an unknown one
            self._set((name, None))
            return Use(self, before)
        if name is not None or isinstance(rows, str) or not isinstance(rows, Sequence) or not rows:
            raise UserError(f"use({name!r}, rows={rows!r}): a name, or a list of names and None, one for each row")
        for row in rows:
            if row is not None:
                self[row]
        self._set((None, tuple(rows)))
        return Use(self, before)

    def delete(self, name: str) -> None:
        """Take an adapter off; where it was in use, the base alone is. After the last one the model is as it was.

        Raises:
            UserError: no such name.
        """
        handle = self[name]
        active, rows = self._now
        if active == name or (rows is not None and name in rows):
            self._set((None, None))
        del self._handles[name]
        handle.detach()
        if self._handles:
            self._guard_checkpoints()

    def detach(self) -> nn.Module:
        """Take all adapters off and return the model, which is then as it was, bit for bit."""
        for name in self.names():
            self.delete(name)
        return self.model

    def _set(self, now: tuple[str | None, tuple[str | None, ...] | None]) -> None:
        pack = self.installation.pack
        name, rows = now
        if self._expanded is not None:
            self._expanded.take_off()
            self._expanded = None
        if rows is None:
            pack.lanes, pack.routing = (BASE if name is None else self._handles[name].number,), None
        else:
            lanes = [BASE if row is None else self._handles[row].number for row in rows]
            pack.lanes, pack.routing = pack.installed, Routing(torch.tensor(lanes))
            self._expanded = Expanded(self.model, pack)
        self._now = now

    def _put_back(self, before: tuple[str | None, tuple[str | None, ...] | None]) -> None:
        """Use what was used before, as far as it is still there."""
        name, rows = before
        gone = [one for one in (name, *(rows or ())) if one is not None and one not in self._handles]
        if self._handles:
            self._set((None, None) if gone else before)

    def _drop_detached(self) -> None:
        """Forget those that were taken off by their own `detach()`."""
        gone = [name for name, handle in self._handles.items() if not handle.names()]
        for name in gone:
            del self._handles[name]
        if gone and self._handles and {self._now[0], *(self._now[1] or ())} & set(gone):
            self._set((None, None))

    def _guard_checkpoints(self) -> None:
        """Let `save_pretrained` write the only adapter; of several it refuses."""
        vars(self.model).pop("load_state_dict", None)
        patch_checkpoints(self.installation, list(self._handles.values()))

    def _forget(self) -> None:
        vars(self.model).pop(_KEPT, None)

    def __repr__(self) -> str:
        """Return the names, and which is in use."""
        _, rows = self._now
        used = f"rows {list(rows)}" if rows is not None else repr(self.active) if self.active else "the base"
        return f"NamedAdapters({', '.join(map(repr, self._handles))}; in use: {used})"


class Use:
    """What was switched to; as a context it puts back what was in use before."""

    def __init__(self, adapters: NamedAdapters, before: Any):
        self._adapters, self._before = adapters, before

    def __enter__(self) -> NamedAdapters:
        return self._adapters

    def __exit__(self, *_: object) -> None:
        self._adapters._put_back(self._before)
