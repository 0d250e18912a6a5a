"""Methods whose update depends on the input: low-rank experts behind a router."""
