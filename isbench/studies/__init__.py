import isbench.openmp  # noqa: F401  # before torch
