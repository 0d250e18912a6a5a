"""AdapterFusion: bottleneck adapters that were trained on other tasks, frozen, and attention over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from lorax.adapters.face import Trainable, TrainingRule
from lorax.errors import UserError
from lorax.initializers.base import Method
from lorax.initializers.registry import register

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lorax.adapters.bottleneck.bottleneck import Bottleneck
    from lorax.adapters.bottleneck.fusion import Fusion
    from lorax.probing.probe import Probe


@register("fusion")
@dataclass(frozen=True, kw_only=True)
class AdapterFusion(Method):
    """term = V sum_k p_k z_k, p = softmax_k((Q u + q) . (K z_k + k)) over adapters k that stay (arXiv:2005.00247).

    u is what the adapters read at their site and z_k what adapter k adds; with adapters of init=pfeiffer on BERT that
    is the output of the block's last norm, as in the library `adapters` (`query_before_ln: false`). Adapters of
    init=houlsby, pfeiffer and parallel_adapter may be fused, of one method and with any ranks.

    Sides taken, all as in the library's default ("dynamic"): Q, K ~ N(0, 0.02^2), V the identity with the constant 1e-6
    off the diagonal, no scaling by sqrt d, penalty 0.01 ||I - V||_F^2 a site; z_k is without the adapter's residual.
    Not followed: dropout on the scores, and its option `temperature`, which falls with every forward pass, in
    evaluation too. Step 0 is near the mean of the adapters, by design not the base.
    """

    adapters: Sequence[str] | None = None
    """Folders of the saved adapters."""
    identities: Sequence[str] | None = None
    """Which adapters they are; filled in from the folders. It enters the run's id, the folders do not."""
    penalty: float = 0.01
    """Weight of ||I - V||_F^2, summed over sites."""

    adapts: ClassVar[str] = "module"
    changes_weight: ClassVar[bool] = False
    takes_saved: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the values, and take the identities of the adapters."""
        number = isinstance(self.penalty, int | float) and not isinstance(self.penalty, bool)
        if not number or not 0 <= self.penalty < float("inf"):
            raise UserError(f"penalty={self.penalty}: a finite number of at least 0 is needed")
        for key in ("adapters", "identities"):
            given = getattr(self, key)
            if given is None:
                continue
            if isinstance(given, str) or not all(isinstance(each, str | Path) for each in given) or not list(given):
                raise UserError(f"{key}={given}: a list of folders of saved adapters is needed")
            object.__setattr__(self, key, tuple(str(each) for each in given))
        if self.adapters is None:
            return
        here = tuple(_digest(folder) for folder in self.adapters)
        if self.identities is not None and tuple(self.identities) != here:
            raise UserError(f"identities={list(self.identities)}: those of the adapters are {list(here)}")
        object.__setattr__(self, "identities", here)

    @property
    def idle(self) -> frozenset[str]:
        """Where the adapters lie: the identities say which they are."""
        return frozenset({"adapters"})

    @property
    def starts_at_base(self) -> bool:
        """Step 0 is near the mean of the adapters."""
        return False

    def rule(self) -> TrainingRule | None:
        """Return the penalty on V."""
        return FusionRule(self.penalty)

    def check(self, name: str, m: int, n: int) -> None:
        """Accept every shape: the adapters have theirs."""

    def count(self, m: int, n: int) -> int:
        """Return m n + 2 m^2 + 2 m of a site that reads n and writes m numbers."""
        return m * n + 2 * m * m + 2 * m

    def __call__(self, probe: Probe) -> NoReturn:
        """Refuse: these are no change of a layer's weight."""
        raise UserError(f"layer {probe.name}: init={self.name} stands at submodules, and changes no weight")

    def sites(self, model: nn.Module) -> list[str]:
        """Return the sites of the saved adapters.

        Raises:
            UserError: none are named, they stand at different sites, or the model lacks one.
        """
        saved = self._saved()
        here = {name for name, _ in model.named_modules()}
        first, names = self._folders()[0], set(saved[0][0])
        for folder, (layers, _) in zip(self._folders(), saved, strict=True):
            if odd := sorted(names ^ set(layers)):
                raise UserError(f"adapters: {folder} and {first} stand at different sites, such as {odd[0]}")
        if lacking := sorted(names - here):
            raise UserError(f"adapters: {first} stands at {lacking[0]}, which {type(model).__name__} lacks")
        return sorted(names)

    def plan(self, name: str, module: nn.Module, generator: torch.Generator) -> Fusion:
        """Return the adapters of a site and the attention over them at its start.

        Raises:
            UserError: an adapter of another kind, for another base, or not at this site.
        """
        from lorax.adapters.bottleneck.fusion import Fusion
        from lorax.adapters.load import other_base

        adapters: list[Bottleneck] = []
        for folder, (layers, tensors) in zip(self._folders(), self._saved(), strict=True):
            if name not in layers:
                raise UserError(f"adapters: {folder} has nothing at {name}")
            if not any(parameter.is_meta for parameter in module.parameters()):
                if line := other_base(folder, name, layers[name], module, []):
                    raise UserError(f"adapters: {line}")
            adapters.append(_bottleneck(folder, name, layers[name], tensors))
        if len({adapter.reads for adapter in adapters}) > 1:
            raise UserError(f"adapters: at {name} some read the input, some the output; fuse those of one method")
        for adapter in adapters:
            adapter.check_module(name, module)
        return Fusion.of(tuple(adapters), generator)

    def _folders(self) -> Sequence[str]:
        if self.adapters is None:
            raise UserError("init=fusion needs trained adapters: init.adapters=[folder,folder], as `save` wrote them")
        return self.adapters

    def _saved(self) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
        identities = self.identities or ()
        return [_read(folder, digest) for folder, digest in zip(self._folders(), identities, strict=True)]


class FusionRule(TrainingRule):
    """The penalty that keeps every V near the identity.

    Args:
        weight: of ||I - V||_F^2.
    """

    def __init__(self, weight: float):
        self.weight = weight
        self._distances: list[float] = []

    def penalty(self, adapters: Trainable) -> Tensor | None:
        """Return weight * sum over sites of ||I - V||_F^2."""
        import torch

        return self.weight * torch.stack(_distances(adapters)).sum() if self.weight else None

    def finish(self, adapters: Trainable) -> None:
        """Note how far every V has gone."""
        self._distances = [float(distance) ** 0.5 for distance in _distances(adapters)]

    def report(self) -> dict[str, Any]:
        """Return the largest ||I - V||_F of a site."""
        return {"value_distance": max(self._distances)} if self._distances else {}


def _distances(adapters: Trainable) -> list[Tensor]:
    from lorax.adapters.bottleneck.fusion import FusionAdapter

    return [each.value_distance() for each in adapters.layer_adapters().values() if isinstance(each, FusionAdapter)]


def _digest(folder: str) -> str:
    """Return the digest of a saved adapter's header, which holds that of its tensors; torch-free."""
    try:
        header = json.loads((Path(folder).expanduser() / "adapter.json").read_text(encoding="utf-8"))
        digest = header["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"adapters: {folder} holds no adapter.json with a digest, as `save` writes it") from None
    return str(digest)[:16]


@lru_cache(maxsize=16)
def _read(folder: str, digest: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return ({site: its description}, the tensors) of a saved adapter, which must be the one of that digest."""
    from lorax.adapters.files.reading import check_layer, read_header, read_tensors

    path = Path(folder).expanduser()
    header = read_header(path)
    if header["digest"][:16] != digest:
        raise UserError(f"adapters: {folder} has changed since it was chosen")
    for name, layer in header["layers"].items():
        check_layer(path, name, layer)
    return header["layers"], read_tensors(path, header)


def _bottleneck(folder: str, name: str, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Bottleneck:
    from lorax.adapters.bottleneck.bottleneck import Bottleneck

    if (kind := described.get("plan", "factors")) != "bottleneck":
        what = "low-rank factors" if kind == "factors" else kind
        raise UserError(f"adapters: {folder} holds {what} at {name}; bottleneck adapters can be fused (init=pfeiffer)")
    prefix = f"{name}.lanes.0."
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return Bottleneck.restore(described, own)
