"""Benchmarks: ratios against a reference measured in the same run. See `python -m benchmarks --help`."""
