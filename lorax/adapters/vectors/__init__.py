"""Layer adapters that train vectors and are no product of trained factors, in plain operations."""
