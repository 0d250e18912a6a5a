"""Probe: what an initialiser may look at in one layer; each thing is computed when asked for, and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from lorax.adapters.experts.find import ExpertSlice
from lorax.adapters.kinds import bias_of, effective, factor_dtype, kind_of, shape_of, weight_of
from lorax.adapters.linears.quantised import QuantisedKind
from lorax.errors import UserError
from lorax.probing import rounding, route, svd
from lorax.probing.cache import Cache, Parts
from lorax.probing.calibration import CalibrationData, not_asked_for
from lorax.probing.fingerprint import key_of, remembered
from lorax.probing.svd import Triplets
from lorax.probing.together import Together

VERSION = 3  # of the decompositions; part of every cache key
BLOCKS = (32, 128, 512)  # how many triplets an entry holds of one end, where it does not hold the whole spectrum

_in_use: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()


class Probe:
    """One layer: shape, weight, singular triplets, gradient, activations, and a generator of its own.

    All tensors come in `dtype` on `device`, the weight's. The generator depends on the seed and the layer's
    name only, so random factors depend neither on other layers nor on other runs of a pack.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        seed: int = 0,
        cache: Cache | None = None,
        calibration: CalibrationData | None = None,
        together: Together | None = None,
    ) -> None:
        """Compute nothing yet.

        Args:
            name: the layer's name in the model.
            module: the layer.
            seed: of the generator.
            cache: where decompositions are kept; None keeps them with this probe.
            calibration: where gradient and activations come from.
            together: the layers that are looked at beside this one.
        """
        self.name = name
        self.shape = shape_of(module)
        self.dtype = factor_dtype(module)
        self.device = weight_of(module).device
        self.stored_dtype = _float_dtype(module)
        """The floating-point dtype that W0 comes in."""
        self.generator = layer_generator(seed, name)
        self.has_bias = not kind_of(module).plain or bias_of(module) is not None
        """Whether the layer's output is, or may be, more than x W^T."""
        self.facts: dict[str, float] = {}
        """Numbers for the record that come with what was asked for: sine_bound, captured."""
        self._module, self._cache, self._calibration = module, cache, calibration
        self._together = together
        self._energy: float | None = None

    @cached_property
    def weight(self) -> Tensor:
        """W0, (m, n).

        Raises:
            UserError: it is not there, or not finite.
        """
        return self._as_stored()

    @property
    def energy(self) -> float:
        """||W0||_F^2. Decompositions are cached together with it, so a cached start does not read the weight."""
        if self._energy is None:
            self._energy = float(_energy(self.weight))
        return self._energy

    @property
    def rounding_level(self) -> float:
        """Singular values of W0 up to this are rounding errors: 8 eps ||W0||_F in fp64, eps ||W0||_F in fp32."""
        factor = 8 if self.dtype == torch.float64 else 1
        return factor * torch.finfo(self.dtype).eps * self.energy**0.5

    @property
    def zero_level(self) -> float:
        """Singular values of W0 up to this cannot be told from zero, whatever the dtype that it is stored in."""
        if self.dtype == torch.float64:
            return self.rounding_level
        return rounding.zero_level(self.shape, self.energy)

    def noise_level(self, smallest: Triplets) -> float:
        """Return what rounding to the stored dtype leaves of r singular values that were zero.

        Args:
            smallest: the r smallest triplets of W0.
        """
        if torch.finfo(self.stored_dtype).eps <= torch.finfo(torch.float32).eps:
            return 0.0  # without reading the weight
        return rounding.noise_level(self.weight, smallest, self.stored_dtype)

    def top_svd(self, r: int, randomised: bool = False) -> Triplets:
        """Return the r largest triplets of W0.

        Args:
            r: how many, at most min(m, n).
            randomised: by seeded block Krylov iteration (`svd.randomised`); `facts` gains the bound on the sine of
                the largest principal angle to the exact subspaces.
        """
        self._check_rank("triplets", r)
        if randomised:
            return self._randomised(r)
        b = self._block_size(r)
        if self._has_small_side:
            return self._ends(b, slice(0, r)) if b <= svd.most_at_ends(min(self.shape)) else self._spectrum(slice(0, r))
        return self._cached(("top", b), slice(0, r))

    def bottom_svd(self, r: int) -> Triplets:
        """Return the r smallest triplets of W0, singular values descending."""
        self._check_rank("triplets", r)
        k, b = min(self.shape), self._block_size(r)
        if self._has_small_side:
            return (
                self._ends(b, slice(2 * b - r, 2 * b)) if b <= svd.most_at_ends(k) else self._spectrum(slice(k - r, k))
            )
        return self._cached(("bottom", b), slice(b - r, b))

    def full_svd(self) -> Triplets:
        """Return all min(m, n) triplets of W0; the same tensors again while anyone still holds them."""
        U, S, V = (_in_use.get(self._identity("full", part)) for part in "USV")
        if U is not None and S is not None and V is not None:
            return Triplets(U, S, V)
        triplets = self._spectrum(slice(0, min(self.shape)))
        for part, tensor in zip("USV", triplets, strict=True):
            _in_use[self._identity("full", part)] = tensor
        return triplets

    @cached_property
    def gradient(self) -> Tensor:
        """G = dL/dW at W0 on the calibration data, (m, n)."""
        if self._calibration is None:
            raise UserError(not_asked_for(self.name, "gradient"))
        return self._calibration.gradient(self.name).to(self.device)

    def activations(self) -> Tensor:
        """Return X^T X / T, (n, n): the second moment of the layer's T inputs on the calibration data, no padding."""
        if self._calibration is None:
            raise UserError(not_asked_for(self.name, "activations"))
        return self._calibration.activations(self.name).to(self.device)

    def gradient_svd(self, r: int) -> Triplets:
        """Return the r largest triplets of G; `facts` gains `captured`, their share of ||G||_F^2."""
        self._check_rank("gradient triplets", r)
        b = self._block_size(r)

        def compute() -> Parts:
            G = _portable(self.gradient)
            return _parts(svd.leading(G, b).to(self.dtype), _energy(G))

        origin = None if self._calibration is None or self._cache is None else self._calibration.gradient_digest
        if self._cache is None or origin is None:
            parts = compute()
        else:
            key = key_of("gradient", VERSION, origin, self.name, b)
            parts = self._cache.get(key, compute, slice(0, r))
        triplets = self._placed(parts).rows(slice(0, r)).to(self.dtype)
        energy = float(parts["energy"][0])
        self.facts["captured"] = float(triplets.S.double().square().sum()) / energy if energy else 0.0
        return triplets

    def shared(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return a frozen tensor derived from W0; all who ask get one storage while one of them holds it.

        Args:
            key: names the derivation; the weight's own digest is added.
            make: computes it.
        """
        identity = self._identity(key)
        tensor = _in_use.get(identity)
        if tensor is None:
            tensor = _in_use[identity] = make()
        return tensor

    @property
    def _has_small_side(self) -> bool:
        return min(self.shape) <= svd.DENSE

    @cached_property
    def _digest(self) -> str:
        stored: Any = self._module.weight  # the tensor itself: `remembered` knows it again, and no view of it
        part = f" {self._module.index}" if isinstance(self._module, ExpertSlice) else ""
        if isinstance(kind_of(self._module), QuantisedKind):  # decompositions are those of the dequantised weight
            return f"{remembered(stored, lambda: effective(self._module))} {self.shape}"
        return f"{remembered(stored)} {self.shape}{part}"

    def _identity(self, *key: Hashable) -> Hashable:
        return (self._digest, self.dtype, self.device, *key)

    def _check_rank(self, what: str, r: int) -> None:
        if not 1 <= r <= min(self.shape):
            m, n = self.shape
            raise UserError(f"layer {self.name}: {r} {what} asked of a {m}x{n} matrix, which has {min(m, n)}")

    def _block_size(self, r: int) -> int:
        """Return how many triplets the cache entry that serves r holds, whatever r asked for it first."""
        return min(next((size for size in BLOCKS if size >= r), min(self.shape)), min(self.shape))

    def _portable_weight(self) -> Tensor:
        return _portable(self.weight)

    def _spectrum(self, rows: slice) -> Triplets:
        return self._cached(("full", min(self.shape)), rows)

    def _ends(self, b: int, rows: slice) -> Triplets:
        return self._cached(("ends", b), rows)

    def lacks(self, kind: route.Kind) -> bool:
        """Whether a decomposition of W0 would have to be computed."""
        if self._cache is None:
            return kind not in self._computed
        return not self._cache.has(self._key(kind, self._way(kind)))

    def read(self) -> Tensor:
        """Return W0 where float64 exists; not kept, unlike `weight`."""
        kept = vars(self).get("weight")
        return _portable(self._as_stored() if kept is None else kept)

    def entry(self, triplets: Triplets) -> Parts:
        """Return triplets of W0 as they are cached, in `dtype`."""
        return _parts(triplets.to(self.dtype), _energy(self.read()))

    def _cached(self, kind: route.Kind, rows: slice) -> Triplets:
        """Return rows of a decomposition of W0, through the cache; rounded to `dtype` before slicing."""
        way = self._way(kind)

        def entry() -> Parts:
            if way == "gram" and self._together is not None:
                return self._together.entry(self, way, kind)
            return self.entry(next(route.decompose(way, kind, [self._portable_weight])))

        if self._cache is None:
            if kind not in self._computed:
                self._computed[kind] = entry()
            parts = {name: part[rows] for name, part in self._computed[kind].items()}
        else:
            parts = self._cache.get(self._key(kind, way), entry, rows)
        return self._triplets(parts)

    def _way(self, kind: route.Kind) -> str:
        return route.way_for(self.device, kind[0], self.dtype)

    def _key(self, kind: route.Kind, way: str) -> str:
        named = kind[:1] if kind[0] == "full" else kind
        return key_of("weight", VERSION, self._digest, *named, *([] if way == "lapack" else [way]))  # other last bits

    def _as_stored(self) -> Tensor:
        if self.device.type == "meta":
            raise UserError(f"layer {self.name}: its weight is on the meta device, without values; load them first")
        return svd.finite(effective(self._module).to(self.dtype), f"layer {self.name}: its weight")

    @cached_property
    def _computed(self) -> dict[Hashable, Parts]:
        return {}

    def _randomised(self, r: int) -> Triplets:
        # seeded by the weight alone: the subspace is the weight's and must not change with the run's seed
        generator = torch.Generator().manual_seed(int(self._digest[:15], 16))

        def compute() -> Parts:
            triplets, bound = svd.randomised(self._portable_weight(), r, generator)
            parts = _parts(triplets.to(self.dtype), _energy(self._portable_weight()))
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
        U, S, Vh = (parts[name].to(self.device) for name in ("U", "S", "Vh"))
        return Triplets(U.mT, S, Vh).to(self.dtype)


def _float_dtype(module: nn.Module) -> torch.dtype:
    dtype = weight_of(module).dtype
    return dtype if dtype.is_floating_point else torch.float32


def layer_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator seeded by sha256(seed, layer name).

    Examples:
        >>> layer_generator(0, "q_proj").initial_seed() == layer_generator(0, "q_proj").initial_seed()
        True
    """
    digits = hashlib.sha256(f"{seed}\x1f{name}".encode()).hexdigest()[:15]
    return torch.Generator().manual_seed(int(digits, 16))


def _parts(triplets: Triplets, energy: Tensor) -> Parts:
    """Return triplets as the cache stores them, a row each, and beside each row the energy of the whole matrix."""
    U, S, Vh = triplets
    rows = {"U": U.mT.contiguous().cpu(), "S": S.cpu(), "Vh": Vh.contiguous().cpu()}
    return rows | {"energy": energy.cpu().repeat(len(S))}


def _energy(matrix: Tensor) -> Tensor:
    """Return ||matrix||_F^2 in float64."""
    return torch.linalg.norm(matrix.double()).square()


def _portable(matrix: Tensor) -> Tensor:
    """Return the matrix where float64 exists: MPS has none."""
    return matrix.cpu() if matrix.device.type == "mps" else matrix
