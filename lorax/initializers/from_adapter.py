"""from: the factors that a saved adapter holds, PEFT's or one of lorax's own, as the start of a training."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError, near
from lorax.initializers.base import Method
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from collections.abc import Callable

    from lorax.adapters.face import LayerPlan
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe

    Read = Callable[[Probe], LayerPlan]

_FILES = (
    "adapter.json",
    "adapter.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


@register("from")
@dataclass(frozen=True, kw_only=True)
class From(Method):
    """B, M and A as an adapter on disk has them, with its eta; they train on as low-rank factors.

    PEFT's LoRA (rank-stabilised too), DoRA and AdaLoRA, and lorax's own adapters whose base is not recentred. Step 0 is
    the model with that adapter, not the base, by design. Modules trained whole beside it are left out, in one warning;
    `lorax.load` takes them along.
    """

    path: str = ""
    """The folder."""
    digest: str | None = None
    """SHA-256 of its files, the first 16 digits; None: as they are. It stands in the run id, the path does not."""

    adapts: ClassVar[str] = "saved"
    takes_saved: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Find the files and their digest."""
        if not isinstance(self.path, str) or not (self.digest is None or isinstance(self.digest, str)):
            raise UserError(f"init=from: path={self.path!r} digest={self.digest!r}: texts are needed")
        if not self.path:
            return
        folder = Path(self.path).expanduser()
        files = [folder / name for name in _FILES if (folder / name).is_file()]
        if not files:
            where = "holds no adapter (adapter.json or adapter_config.json)" if folder.is_dir() else "is no folder"
            raise UserError(f"init=from: path={self.path} {where}")
        found = hashlib.sha256()
        for file in files:
            found.update(file.name.encode() + b"\0" + file.read_bytes())
        digest = found.hexdigest()[:16]
        if self.digest not in (None, digest):
            raise UserError(f"init=from: path={self.path} has digest {digest}, asked for is {self.digest}")
        object.__setattr__(self, "digest", digest)

    @property
    def idle(self) -> frozenset[str]:
        """The path: what counts is the files' digest."""
        return frozenset({"path"})

    @property
    def starts_at_base(self) -> bool:
        """Step 0 is the adapter that was trained before."""
        return False

    @property
    def layers(self) -> list[str]:
        """The adapter's own layers."""
        return list(self._read()[0])

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError where the adapter has no such layer, or one of another shape."""
        shapes, _ = self._read()
        if name not in shapes:
            raise UserError(f"layer {name}: the adapter at {self.path} has none there; {near(name, shapes)}")
        if shapes[name] != (m, n):
            raise UserError(f"layer {name}: the adapter at {self.path} is for {shapes[name]}, the weight is {(m, n)}")

    def count(self, m: int, n: int) -> int:
        """Refuse: layers of one shape may have several ranks."""
        raise UserError("init=from: the adapter on disk says how many values train, no formula does")

    def __call__(self, probe: Probe) -> LayerPlan:
        """Return the factors of one layer, of DoRA with the lengths of its rows."""
        self.check(probe.name, *probe.shape)
        return self._read()[1](probe).to(probe.dtype, probe.device)

    def _read(self) -> tuple[dict[str, tuple[int, int]], Read]:
        if not self.path:
            raise UserError("init=from: give path=<folder of an adapter>, PEFT's or one that adapters.save wrote")
        return _opened(str(Path(self.path).expanduser()), self.digest)


@lru_cache(maxsize=2)
def _opened(path: str, digest: str | None) -> tuple[dict[str, tuple[int, int]], Read]:
    """Return the shapes of a folder's layers, and what reads the factors of one; once for each content."""
    from lorax.loading.peft.config import is_peft_folder

    shapes, whole, read = (_pefts if is_peft_folder(Path(path)) else _own)(Path(path))
    if whole:
        more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
        warnings.warn(f"{path}: {whole[0]}{more} beside its factors is left out: init=from takes factors", stacklevel=6)
    return shapes, read


def _pefts(path: Path) -> tuple[dict[str, tuple[int, int]], list[str], Read]:
    from lorax.loading.peft.config import read_config
    from lorax.loading.peft.load import layer_factors, with_lengths
    from lorax.loading.peft.tensors import read_tensors

    config, tensors = read_config(path), read_tensors(path)
    shapes = {
        name: (parts["lora_B"].shape[0], parts["lora_A"].shape[1])
        for name, parts in sorted(tensors.factors.items())
        if {"lora_A", "lora_B"} <= parts.keys() and parts["lora_A"].shape[0] > 0
    }

    def read(probe: Probe) -> LayerPlan:
        name, parts = probe.name, tensors.factors[probe.name]
        factors = layer_factors(config, name, parts, probe.shape, probe.dtype)
        assert factors is not None  # layers without a triplet are not among the shapes
        return with_lengths(config, name, parts, factors, lambda: probe.weight.cpu(), probe.has_bias)

    return shapes, sorted(tensors.whole), read


def _own(path: Path) -> tuple[dict[str, tuple[int, int]], list[str], Read]:
    from lorax.adapters.factors import Factors
    from lorax.adapters.files.plans import restore_plan
    from lorax.adapters.files.reading import check_layer, read_header, read_tensors

    header = read_header(path)
    if header["kind"] != "adapter":
        raise UserError(f"{path}: holds no factors (kind {header['kind']}); init=from starts from adapters")
    tensors = read_tensors(path, header)
    plans: dict[str, Factors] = {}
    for name, layer in header["layers"].items():
        check_layer(path, name, layer)
        own = {
            key.partition(".lanes.0.")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.lanes.")
        }
        if layer.get("shifts_base", False):
            raise UserError(
                f"{path}: {name} was recentred, so its factors alone are no start; lorax.load takes it whole"
            )
        try:
            plan = restore_plan(layer, own)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: the adapter of {name} cannot be built: {' '.join(str(error).split())[:100]}"
            ) from None
        if not isinstance(plan, Factors):
            raise UserError(f"{path}: {name} has no low-rank factors to start from; lorax.load takes it whole")
        plans[name] = plan
    return {name: plan.shape for name, plan in plans.items()}, header["heads"], lambda probe: plans[probe.name]
