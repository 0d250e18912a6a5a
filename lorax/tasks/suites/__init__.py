"""Published benchmarks that are trained on one source and tested on another: commonsense, mathematics, code."""
