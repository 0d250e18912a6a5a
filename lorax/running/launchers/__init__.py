"""Where packs and jobs run: worker processes, a cluster's queue, and what is done when memory runs out."""
