"""Linear layers that are no plain `nn.Linear`: those that compute the same, and why the others are not adapted."""
