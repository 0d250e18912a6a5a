"""The public way in: attach adapters to a model, load saved ones."""

from lorax.api.attach import attach
from lorax.api.factors import check_shapes, make_factors
from lorax.api.load import load

__all__ = ["attach", "check_shapes", "load", "make_factors"]
