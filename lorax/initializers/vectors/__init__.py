"""Methods that train vectors: on singular values, around shared matrices, over the norms of rows."""
