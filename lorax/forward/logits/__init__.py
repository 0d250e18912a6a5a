"""The logits of a language model and their losses: computed where they are needed, some at a time."""
