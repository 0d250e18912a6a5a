"""Rows of a batch that each name their lane."""
