"""The audit of a study: whether its evidence holds together, and what a reader has to know of it."""
