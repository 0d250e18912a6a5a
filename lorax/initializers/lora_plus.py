"""LoRA+: B learns faster than A."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorax.initializers.base import positive
from lorax.initializers.lora import LoRA
from lorax.initializers.registry import register


@register("lora_plus")
@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA):
    """LoRA whose B has the learning rate `ratio` * lr, A has lr (arXiv:2402.12354); `ratio=1` is LoRA.

    Side taken: one weight decay for both, as in LoRA here, where the authors' code keeps decay off vectors (it
    has none to keep it off in a linear layer). `lr_prior` is 1 / sqrt(ratio) at the default ratio: the geometric
    mean of the two rates is LoRA's, which is a start for tuning and not a published value.
    """

    ratio: float = 16.0
    """lr of B over lr of A; 16 in the authors' examples."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        positive("ratio", self.ratio)

    @property
    def rates(self) -> Mapping[str, float]:
        """B learns at `ratio` times the run's rate."""
        return {"B": self.ratio}
