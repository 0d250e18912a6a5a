"""From configuration to record: identity, checks, the story of a run, sweeps."""
