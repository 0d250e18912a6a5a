"""Adapted models in other formats: PEFT's, and a plain checkpoint; what lies in a folder was computed once."""
