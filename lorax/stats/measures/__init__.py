"""What is told beside a verdict: probability of improvement, recovered share, robustness to the rate, several tasks."""
