"""`isbench` and `python -m isbench` are the command line: what to train, or first the name of another command."""

import sys
from importlib import import_module

from isbench.nodes import nearest

# Commands beside training. The main function of each module takes the words after the command.
COMMANDS = {
    "status": "isbench.grid.status",
    "report": "isbench.report.__main__",
    "collect": "isbench.report.collect",
    "spend": "isbench.grid.spend",
}


def main() -> None:
    """Run the command line, or say what has to be installed for it."""
    word = sys.argv[1] if sys.argv[1:] else ""
    if word.isalpha() and word not in COMMANDS:
        sys.exit(f"isbench: {word}: neither key=value nor a command; {nearest(word, COMMANDS)}")
    try:
        run = import_module(COMMANDS.get(word, "isbench.cli")).main
    except ModuleNotFoundError as error:
        sys.exit(f"isbench: the command line needs the package {error.name}: pip install 'isbench[suite]' brings it")
    sys.exit(run(sys.argv[2:]) if word in COMMANDS else run())


if __name__ == "__main__":
    main()
