"""Low-rank factors as data, and the one layer type that trains them."""
