"""python -m expressive_losses.experiments COMMAND ...; see --help of each."""

import sys

from expressive_losses.cli.common import run_command
from expressive_losses.experiments.cli import CellsFailed, main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    saves = arguments[:1] in (["run"], ["sweep"]) and "--dry-run" not in arguments
    try:
        code = run_command(main, arguments, "the same command goes on from there" if saves else "")
    except CellsFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)
