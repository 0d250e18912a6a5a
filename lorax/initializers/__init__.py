"""Initialisers: one file per method; a new one is a file here and a YAML in conf/init."""
