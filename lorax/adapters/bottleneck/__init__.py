"""Bottleneck adapters: a small network beside or after a submodule, which is no change of a weight."""
