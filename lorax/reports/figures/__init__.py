"""Drawing, and nothing else: what is drawn comes from `lorax.reports.frames`."""
