"""Trained tensors of several lanes in one buffer, for as long as they train together."""
