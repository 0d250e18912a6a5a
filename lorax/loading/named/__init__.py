"""Several adapters on one base, by name: switched without a weight written, and mixed in one batch."""
