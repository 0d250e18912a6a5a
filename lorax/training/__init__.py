"""Training: encoding, the loop over lanes, evaluation, checkpoints, tracking and costs."""
