"""What a model's own code says about its parts: heads, towers, weights that are read without a call."""
