"""An adapter of a finished run, on the hub in PEFT's format."""
