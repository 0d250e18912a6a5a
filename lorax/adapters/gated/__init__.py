"""Gated experts: several low-rank adapters at one layer, weighted by what a router reads in the layer's input."""
