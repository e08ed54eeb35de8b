"""Measures what isbench costs: `python -m benchmarks [theme ...] [--quick]`, or `make bench`.

A theme is a module here. Its docstring says what it compares, and its `rows(device, quick)` yields the measurements.
"""

import isbench.openmp  # noqa: F401  # before torch
