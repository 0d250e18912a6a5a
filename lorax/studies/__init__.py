"""Studies: the protocol of a comparison and the statistics that judge it. Torch-free."""
