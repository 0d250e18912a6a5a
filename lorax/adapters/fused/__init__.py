"""The fast forms of an adapted layer, each compared by tests with its plain operations."""
