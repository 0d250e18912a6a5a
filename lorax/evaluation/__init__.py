"""From a trained model to items and scores."""
