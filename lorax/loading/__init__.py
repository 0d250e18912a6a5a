"""What comes onto a model from disk beside plain loading: adapters of PEFT, and several adapters by name."""
