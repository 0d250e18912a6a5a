"""Adapters on disk: lorax's own format, PEFT's, and Trainer's checkpoints."""
