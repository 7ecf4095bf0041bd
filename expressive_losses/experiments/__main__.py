"""python -m expressive_losses.experiments COMMAND ...; see --help of each."""

import sys

from expressive_losses.cli.common import run_command
from expressive_losses.experiments.cli import CellsFailed, main

if __name__ == "__main__":
    try:
        code = run_command(main, None)
    except CellsFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)
