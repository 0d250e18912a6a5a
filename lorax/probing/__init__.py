"""What initialisers may ask of one layer: its weight, its spectrum, its gradient, its activations."""

CALIBRATED = frozenset({"gradient", "activations"})
"""Those `needs` of a method that are collected on calibration batches."""
