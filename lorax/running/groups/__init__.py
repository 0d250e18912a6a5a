"""Runs over a group of tasks: a lane a task on one base, trained as one, one record."""
