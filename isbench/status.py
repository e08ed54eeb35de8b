"""`python -m isbench.status`, the same as `isbench status`, shows how far experiments have come."""

from isbench.grid.status import main

if __name__ == "__main__":
    main()
