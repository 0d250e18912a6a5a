"""Mixtures of saved adapters: coefficients found on a few items by a search without gradients."""
