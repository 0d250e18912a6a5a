"""Bottleneck adapters and their fusion: one file a method."""

from lorax.initializers.bottleneck import fusion, houlsby, parallel_adapter, pfeiffer  # noqa: F401  (they register themselves)
