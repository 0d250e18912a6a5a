"""Adapters in PEFT's format come in: its configuration, its tensors, and what lorax makes of them."""
