"""The command lines: arguments in, exit code out. What needs torch is imported once the arguments are understood."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps

from expressive_losses.cli.arguments import Parser, train_parser, verify_parser
from expressive_losses.errors import UserError

Main = Callable[[Sequence[str] | None], int]
_RESUME = "continue with --resume"


def _interruptible(main: Main) -> Main:
    """Make Ctrl-C one line and exit code 130 from the first moment on, the import of torch included."""

    @wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        try:
            code = main(arguments)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        if code == 0 and arguments is None and "TORCHELASTIC_RUN_ID" in os.environ:
            # The program is done. Taken apart as usual, a process of torchrun is at times aborted by gloo.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        return code

    return wrapped


@_interruptible
def train_main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of train.py; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parsed(train_parser(), arguments)
    if options is None:
        return 2
    from expressive_losses.cli.common import run_command
    from expressive_losses.cli.train import train

    return run_command(train, arguments, "" if options.list or options.dry_run else _RESUME)


@_interruptible
def verify_main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of verify.py; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    is_tool = bool(arguments) and not arguments[0].startswith("-")
    options = _parsed(verify_parser(), arguments) if not is_tool else None
    if options is None and not is_tool:
        return 2
    from expressive_losses.cli.common import run_command
    from expressive_losses.cli.verify import verify

    saves = options is not None and not options.list
    return run_command(verify, arguments, _RESUME if saves else "")


def _parsed(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace | None:
    """Return the options, or None, with one line on stderr, where there is a mistake; ``--help`` ends the program."""
    try:
        return parser.parse_args(arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return None
