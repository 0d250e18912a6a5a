"""Tables that others published: read, and judged for what they can separate."""
