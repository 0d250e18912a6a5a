"""Effects, power, verdicts: what paired scores allow to say."""
