"""From examples to outputs and losses: encoding, batches, decoding, and which adapters a batch goes through."""
