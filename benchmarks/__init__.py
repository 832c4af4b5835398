"""Measurements, each beside its peer in one run. `python -m benchmarks` runs them all and prints Markdown."""
