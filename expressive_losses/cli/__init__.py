"""The command lines: arguments in, exit code out."""

from collections.abc import Sequence

from expressive_losses.cli.common import run_command
from expressive_losses.cli.train import train
from expressive_losses.cli.verify import verify


def train_main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of train.py; returns the exit code."""
    return run_command(train, arguments)


def verify_main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of verify.py; returns the exit code."""
    return run_command(verify, arguments)
