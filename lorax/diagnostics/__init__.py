"""What an adapter does to the model: alignment with full fine-tuning, shape of the update, forgetting."""
