"""From examples to losses and logits: tokens, batches, shared beginnings, the output head."""
