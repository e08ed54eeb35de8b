"""isbench: does importance sampling make deep nets train faster? Timed, fair, resumable comparisons."""

__version__ = "0.1.0"
