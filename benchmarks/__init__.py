"""What isbench costs, measured beside what it stands for: `python -m benchmarks [theme ...] [--quick]`, `make bench`.

A module here is a theme: its docstring says what is compared, its `rows(device, quick)` yields the measurements.
"""
