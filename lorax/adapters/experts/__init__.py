"""Experts whose weights are one 3-D parameter: each expert is an (m, n) matrix with an adapter of its own."""
