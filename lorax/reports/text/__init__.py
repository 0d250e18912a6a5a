"""Numbers, documents and their formats: Markdown, LaTeX, HTML."""
