"""`python -m isbench` is the command line."""

from isbench.cli import main

if __name__ == "__main__":
    main()
