"""The command lines: arguments in, exit code out. What needs torch is imported once the arguments are understood."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps

from expressive_losses.cli.arguments import Parser, train_parser, verify_parser
from expressive_losses.errors import UserError

Main = Callable[[Sequence[str] | None], int]


def _interruptible(main: Main) -> Main:
    """Make Ctrl-C one line and exit code 130 from the first moment on, the import of torch included."""

    @wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except KeyboardInterrupt:
            print("interrupted; continue with --resume", file=sys.stderr)
            return 130

    return wrapped


@_interruptible
def train_main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of train.py; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if complaint := _complaint(train_parser(), arguments):
        return complaint
    from expressive_losses.cli.common import run_command
    from expressive_losses.cli.train import train

    return run_command(train, arguments)


@_interruptible
def verify_main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of verify.py; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    is_tool = bool(arguments) and not arguments[0].startswith("-")
    if not is_tool and (complaint := _complaint(verify_parser(), arguments)):
        return complaint
    from expressive_losses.cli.common import run_command
    from expressive_losses.cli.verify import verify

    return run_command(verify, arguments)


def _complaint(parser: Parser, arguments: Sequence[str]) -> int:
    """Return 0 for arguments that can be parsed, else 2, with one line on stderr; ``--help`` ends the program."""
    try:
        parser.parse_args(arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
