"""Models: where they come from, how they are loaded, and what a run needs to know of them."""

from lorax.models.registry import Loaded, build, digest, load, names, skeleton

__all__ = ["Loaded", "build", "digest", "load", "names", "skeleton"]
