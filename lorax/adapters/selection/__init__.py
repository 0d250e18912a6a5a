"""Which layers of a model are adapted, which are not, and why; what stands in the way."""
