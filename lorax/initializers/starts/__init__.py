"""LoRA from another start: both factors train, their first values come from weights, gradients or activations."""
