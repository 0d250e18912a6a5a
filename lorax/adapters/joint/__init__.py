"""Layer adapters that several tasks train together, each with something of its own."""
