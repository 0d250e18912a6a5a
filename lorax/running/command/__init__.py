"""What was typed: the words of the command line, and the YAML files that they name."""
