"""Saved adapters as experts: the factors that each has at each layer, of one base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorax.adapters.core import Diagonal, Identity
from lorax.adapters.experts.find import layers_of
from lorax.adapters.factors import Factors
from lorax.adapters.files.export import low_rank_pair
from lorax.adapters.install import placed
from lorax.adapters.kinds import effective
from lorax.adapters.load import Saved, read_saved
from lorax.adapters.low_rank import LowRankAdapter
from lorax.errors import UserError
from lorax.loading.peft.config import is_peft_folder
from lorax.loading.peft.load import read as read_peft

_TRIPLETS = 1e-3
"""Bound of ||B A - W0|| / ||W0|| for factors that are the weight's own singular triplets."""


@dataclass(frozen=True)
class Expert:
    """One saved adapter."""

    path: Path
    factors: dict[str, Factors]
    """{layer: as trained}, where the model's weights are."""


@torch.no_grad()
def read_experts(model: nn.Module, paths: Sequence[Path]) -> list[Expert]:
    """Read adapters saved by lorax or by PEFT and fit them to a model, which is not changed.

    Raises:
        UserError: another base, what cannot be read, or what is no low-rank change of a weight and has no mixture.
    """
    read: list[Expert] = []
    for path in paths:
        factors = _pefts(model, path) if is_peft_folder(path) else _own(model, path)
        for name, one in factors.items() if read else ():
            first = read[0].factors.get(name)
            if first is not None and same_basis([first, one]):  # one copy then serves all candidates
                factors[name] = replace(one, B=first.B, A=first.A)
        read.append(Expert(path, factors))
    return read


@torch.no_grad()
def hold_singular_values(model: nn.Module, experts: Sequence[Expert]) -> bool:
    """Whether every expert is a vector on the singular values of every layer's weight: W0 = B A, and B, A frozen."""
    modules = layers_of(model)
    names = set(experts[0].factors)
    if any(set(expert.factors) != names for expert in experts):
        return False
    for name in names:
        first = experts[0].factors[name]
        for factors in (expert.factors[name] for expert in experts):
            vector = isinstance(factors.M, Diagonal) and factors.eta == 1 and factors.trainable == {"M"}
            if not vector or not same_basis([first, factors]):
                return False
        W0 = effective(modules[name]).to(first.B.dtype)
        if float((first.B @ first.A - W0).norm()) > _TRIPLETS * float(W0.norm()):
            return False
    return True


def same_basis(factors: Sequence[Factors]) -> bool:
    """Whether all have equal B, A and eta."""
    first = factors[0]
    return all(
        one.eta == first.eta
        and (one.B is first.B or (one.B.shape == first.B.shape and torch.equal(one.B, first.B)))
        and (one.A is first.A or (one.A.shape == first.A.shape and torch.equal(one.A, first.A)))
        for one in factors[1:]
    )


def _pefts(model: nn.Module, path: Path) -> dict[str, Factors]:
    found = read_peft(model, path)
    _refuse_whole(path, list(found.whole))
    modules, kept = layers_of(model), {}
    for name, plan in found.plans.items():
        plan = placed(plan, modules[name])
        if not isinstance(plan, Factors):
            raise _no_mixture(path, name)
        kept[name] = plan
    return kept


def _own(model: nn.Module, path: Path) -> dict[str, Factors]:
    saved = read_saved(model, path)
    if saved.header["kind"] != "adapter":
        raise UserError(f"{path}: holds a model trained as {saved.header['kind']}, no adapter: there is no mixture")
    _refuse_whole(path, saved.header["heads"])
    modules = layers_of(model)
    return {name: _current(saved, path, name, modules[name]) for name in saved.plans}


def _current(saved: Saved, path: Path, name: str, module: nn.Module) -> Factors:
    """Return a layer's factors as they were saved; of recentred ones W' - W0 as one product."""
    adapter = placed(saved.plans[name], module).build(
        fold=saved.header["recenter"] == "fold", dropout=0.0, share=_as_it_is
    )
    prefix = f"{name}."
    values: dict[str, Tensor] = {
        key.removeprefix(prefix): value for key, value in saved.tensors.items() if key.startswith(prefix)
    }
    for key, tensor in adapter.state_dict(keep_vars=True).items():
        if key not in values or values[key].shape != tensor.shape:
            raise UserError(f"{path}: the adapter of {name} lacks its tensor {key}")
        tensor.copy_(values[key])
    if isinstance(adapter, LowRankAdapter) and adapter.shifts_base:
        B, A = low_rank_pair(adapter)
        return Factors(B, Identity(), A, 1.0, frozenset("AB"))
    factors = adapter.factors()
    if factors is None:
        raise _no_mixture(path, name)
    return factors


def _as_it_is(name: str, tensor: Tensor) -> Tensor:
    """Store a frozen tensor without a copy."""
    return tensor


def _no_mixture(path: Path, name: str) -> UserError:
    return UserError(f"{path}: the adapter of {name} is no low-rank change of its weight, and has no mixture")


def _refuse_whole(path: Path, names: Sequence[str]) -> None:
    if names:
        raise UserError(f"{path}: trained {names[0]} whole beside its factors; a mixture is made of factors alone")
