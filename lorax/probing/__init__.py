"""What initialisers may ask of one layer: its weight, its spectrum, its gradient."""
