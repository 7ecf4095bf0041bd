"""What the command lines share: errors to exit codes, and the device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from expressive_losses.errors import UserError
from expressive_losses.trainer import Interrupted


def run_command(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None) -> int:
    """Run a command and turn what can go wrong into an exit code.

    Returns:
        0; 2 for a mistake of the user (one line on stderr); 130 on Ctrl-C; 143 after SIGTERM with the state saved.
    """
    try:
        command(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; continue with --resume", file=sys.stderr)
        return 130
    except Interrupted:
        print("stopped; the state is saved, continue with --resume", file=sys.stderr)
        return 143
    return 0


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" prefers a GPU.

    Raises:
        UserError: for a device that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); try --device cpu") from None
    return device
