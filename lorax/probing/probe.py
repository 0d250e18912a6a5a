"""Probe: what an initialiser may look at in one layer, computed when asked for and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from lorax.errors import UserError
from lorax.probing import svd
from lorax.probing.cache import Cache, Parts, key_of, remembered
from lorax.probing.gradient import Gradients, Loss
from lorax.probing.parallel import side_by_side
from lorax.probing.svd import Triplets
from lorax.probing.weight import factor_dtype, oriented, shape_of

T = TypeVar("T")
VERSION = 3  # of the decompositions; part of every cache key
BLOCKS = (32, 128, 512)  # triplets held per end where the spectrum is not held whole

_alive: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()


class Probe:
    """One layer: shape, weight, singular triplets, gradient, and a generator of its own.

    All tensors come in `dtype` on `device`, the weight's. The generator depends on the seed and the layer's
    name only, so random factors do not change with other layers, targets or lanes.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        seed: int = 0,
        cache: Cache | None = None,
        gradients: Gradients | None = None,
        exact: bool = True,
    ) -> None:
        """Look at nothing yet."""
        self.name = name
        self.shape = shape_of(module)
        self.dtype = factor_dtype(module)
        self.device = module.weight.device
        self.generator = layer_generator(seed, name)
        self.facts: dict[str, float] = {}
        """What was found on the way, for the record: sine_bound, gradient_captured, ..."""
        self._module, self._cache, self._gradients, self._exact = module, cache, gradients, exact
        self._energy: float | None = None

    @cached_property
    def weight(self) -> Tensor:
        """W0, (m, n)."""
        stored = oriented(self._module, self._module.weight.detach())
        return svd.finite(stored.to(self.dtype), f"layer {self.name}: its weight")

    @property
    def energy(self) -> float:
        """||W0||_F^2, kept beside a decomposition so that a cached start does not read the weight."""
        if self._energy is None:
            self._energy = float(_energy(self.weight))
        return self._energy

    @property
    def tiny(self) -> float:
        """Below this a singular value of W0 is rounding: 8 ulp of ||W0||_F in fp64, one in fp32."""
        ulps = 8 if self.dtype == torch.float64 else 1
        return ulps * torch.finfo(self.dtype).eps * self.energy**0.5

    def top_svd(self, r: int, randomised: bool = False) -> Triplets:
        """Return the r largest triplets of W0.

        Args:
            r: how many, at most min(m, n).
            randomised: by seeded block Krylov (`svd.randomised`); the bound on its sine goes into `facts`.
        """
        self._bound("triplets", r)
        if randomised or not self._exact:
            return self._randomised(r)
        b = self._block(r, BLOCKS)
        if self._dense:
            return self._ends(b, slice(0, r)) if b <= svd.few(min(self.shape)) else self._spectrum(slice(0, r))
        return self._held(("top", b), lambda: svd.top(self._wide(), b), slice(0, r))

    def bottom_svd(self, r: int) -> Triplets:
        """Return the r smallest triplets of W0, singular values descending."""
        self._bound("triplets", r)
        k, b = min(self.shape), self._block(r, BLOCKS)
        if self._dense:
            return self._ends(b, slice(2 * b - r, 2 * b)) if b <= svd.few(k) else self._spectrum(slice(k - r, k))
        return self._held(("bottom", b), lambda: svd.bottom(self._wide(), b), slice(b - r, b))

    def full_svd(self) -> Triplets:
        """Return all min(m, n) triplets of W0; the same tensors while another holder keeps them alive."""
        k = min(self.shape)
        known = [_alive.get(self._identity("full", part)) for part in "USV"]
        if all(part is not None for part in known):
            return Triplets(*known)
        found = self._spectrum(slice(0, k))
        for part, tensor in zip("USV", found, strict=True):
            _alive[self._identity("full", part)] = tensor
        return found

    @cached_property
    def gradient(self) -> Tensor:
        """G = dL/dW at W0 on the calibration data, (m, n)."""
        if self._gradients is None:
            raise UserError(f"layer {self.name}: no gradient was asked for; `needs` must hold 'gradient'")
        return self._gradients[self.name].to(self.device)

    def gradient_svd(self, r: int) -> Triplets:
        """Return the r largest triplets of G; `facts` gains the share of ||G||^2 they hold."""
        self._bound("gradient triplets", r)
        b = self._block(r, BLOCKS)

        def compute() -> Parts:
            G = _portable(self.gradient)
            return _parts(svd.leading(G, b).to(self.dtype), _energy(G))

        origin = None if self._gradients is None or self._cache is None else self._gradients.digest
        if origin is None:
            parts = compute()
        else:
            key = key_of("gradient", VERSION, origin, self.name, b)
            parts = self._cache.get(key, compute, slice(0, r))
        found = self._placed(parts).rows(slice(0, r)).to(self.dtype)
        energy = float(parts["energy"][0])
        self.facts["captured"] = float(found.S.double().square().sum()) / energy if energy else 0.0
        return found

    def shared(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return a frozen tensor derived from W0, one storage for all who ask while one of them holds it.

        Args:
            key: names the derivation; the weight's own digest is added.
            make: computes it.
        """
        whole = self._identity(key)
        found = _alive.get(whole)
        if found is None:
            found = _alive[whole] = make()
        return found

    @property
    def _dense(self) -> bool:
        return min(self.shape) <= svd.DENSE

    @cached_property
    def _digest(self) -> str:
        return f"{remembered(self._module.weight)} {self.shape}"

    def _identity(self, *key: Hashable) -> Hashable:
        return (self._digest, self.dtype, self.device, *key)

    def _bound(self, what: str, r: int) -> None:
        if not 1 <= r <= min(self.shape):
            m, n = self.shape
            raise UserError(f"layer {self.name}: {r} {what} asked of a {m}x{n} matrix, which has {min(m, n)}")

    def _block(self, r: int, sizes: tuple[int, ...]) -> int:
        """Return how many triplets an entry that serves r holds, whoever asks first."""
        return min(next((size for size in sizes if size >= r), min(self.shape)), min(self.shape))

    def _wide(self) -> Tensor:
        return _portable(self.weight)

    def _spectrum(self, rows: slice) -> Triplets:
        return self._held(("full",), lambda: svd.full(self._wide()), rows)

    def _ends(self, b: int, rows: slice) -> Triplets:
        return self._held(("ends", b), lambda: svd.ends(self._wide(), b), rows)

    def _held(self, kind: tuple[Hashable, ...], compute: Callable[[], Triplets], rows: slice) -> Triplets:
        """Return rows of a decomposition of W0, through the cache; rounded to `dtype` before slicing."""

        def entry() -> Parts:
            return _parts(compute().to(self.dtype), _energy(self._wide()))

        if self._cache is None:
            if kind not in self._computed:
                self._computed[kind] = entry()
            parts = {name: part[rows] for name, part in self._computed[kind].items()}
        else:
            parts = self._cache.get(key_of("weight", VERSION, self._digest, *kind), entry, rows)
        return self._triplets(parts)

    @cached_property
    def _computed(self) -> dict[Hashable, Parts]:
        return {}

    def _randomised(self, r: int) -> Triplets:
        # the subspace is the weight's, so no run seed moves it
        generator = torch.Generator().manual_seed(int(self._digest[:15], 16))

        def compute() -> Parts:
            found, bound = svd.randomised(self._wide(), r, generator)
            parts = _parts(found.to(self.dtype), _energy(self._wide()))
            return parts | {"bound": torch.full((r,), bound, dtype=torch.float64)}

        if self._cache is None:
            parts = compute()
        else:
            parts = self._cache.get(key_of("randomised", VERSION, self._digest, r), compute)
        self.facts["sine_bound"] = float(parts["bound"][0])
        return self._triplets(parts)

    def _triplets(self, parts: Parts) -> Triplets:
        """Return an entry's triplets of W0 on the device, and note its energy."""
        self._energy = float(parts["energy"][0])
        return self._placed(parts)

    def _placed(self, parts: Parts) -> Triplets:
        found = Triplets(*(parts[name].to(self.device) for name in ("U", "S", "Vh")))
        return Triplets(found.U.mT, found.S, found.Vh).to(self.dtype)


def probe_layers(
    model: nn.Module,
    targets: dict[str, nn.Module],
    look: Callable[[Probe], T],
    needs: frozenset[str] = frozenset(),
    *,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    cache: Cache | None = None,
    exact: bool = True,
) -> dict[str, T]:
    """Return {layer name: look(its probe)}; what a probe computed is released when its layer is done.

    Args:
        model: the untouched base.
        targets: {layer name: module}.
        look: an initialiser; called for several layers at once on a CPU with several cores.
        needs: what it will look at; "gradient" makes the calibration pass available.
        loss: as `gradient.layer_gradients`.
        batches: calibration batches, for gradients.
        seed: of the layers' generators.
        cache: where decompositions are kept; None computes them anew, to the same bits.
        exact: False makes every `top_svd` a randomised one.
    """
    gradients = Gradients(model, targets, loss, batches) if "gradient" in needs else None

    def one(name: str) -> T:
        try:
            return look(Probe(name, targets[name], seed=seed, cache=cache, gradients=gradients, exact=exact))
        finally:
            if gradients is not None:
                gradients.release(name)

    return side_by_side(targets, one)


def layer_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator seeded by sha256(seed, layer name).

    Examples:
        >>> layer_generator(0, "q_proj").initial_seed() == layer_generator(0, "q_proj").initial_seed()
        True
    """
    digits = hashlib.sha256(f"{seed}\x1f{name}".encode()).hexdigest()[:15]
    return torch.Generator().manual_seed(int(digits, 16))


def _parts(found: Triplets, energy: Tensor) -> Parts:
    """Return the triplets by rows, as the cache stores them, and the squared norm of what they decompose."""
    rows = {"U": found.U.mT.contiguous().cpu(), "S": found.S.cpu(), "Vh": found.Vh.contiguous().cpu()}
    return rows | {"energy": energy.cpu().repeat(len(found.S))}


def _energy(matrix: Tensor) -> Tensor:
    return torch.linalg.norm(matrix.double()).square()


def _portable(matrix: Tensor) -> Tensor:
    """Return the matrix where float64 exists: MPS has none."""
    return matrix.cpu() if matrix.device.type == "mps" else matrix
