"""Shows by simulation that the verdicts keep their error rates: `python -m lorax.calibration`."""
