"""What is read off a head on an encoder's tokens, or off one output: tags, spans of an answer, numbers."""
