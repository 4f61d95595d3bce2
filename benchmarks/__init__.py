"""Measures this package beside its peers: ``python -m benchmarks --help``. Nothing here is installed with it."""
