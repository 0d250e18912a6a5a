"""The effective (m, n) weight of a layer: one way for all of probing to ask for it."""

from __future__ import annotations

from lorax.adapters.kinds import factor_dtype, oriented, shape_of

__all__ = ["factor_dtype", "oriented", "shape_of"]
