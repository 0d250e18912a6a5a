"""Speed and memory against PEFT, side by side: `python -m benchmarks <name>`."""
