"""`isbench` and `python -m isbench` are the command line."""

import sys


def main() -> None:
    """Run the command line, or say what has to be installed for it."""
    try:
        from isbench.cli import main
    except ModuleNotFoundError as error:
        sys.exit(f"isbench: the command line needs the package {error.name}: pip install 'isbench[suite]' brings it")
    main()


if __name__ == "__main__":
    main()
