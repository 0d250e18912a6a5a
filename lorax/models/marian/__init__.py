"""Small translation models in Marian's format: the family, its file, its network."""
