"""Tasks whose answer is read off a head: tagged words, pairs of sentences, numbers, spans of a text. Torch-free."""
