"""`python -m isbench.spend`, the same as `isbench spend`, spends a given time on runs that are missing."""

from isbench.grid.spend import main

if __name__ == "__main__":
    main()
