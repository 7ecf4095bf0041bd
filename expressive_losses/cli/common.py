"""What the command lines share: errors to exit codes, and the device."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch

from expressive_losses import distributed
from expressive_losses.errors import Interrupted, UserError


def run_command(command: Callable[[Sequence[str]], None], arguments: Sequence[str], go_on: str = "") -> int:
    """Run a command and turn what can go wrong into an exit code.

    Args:
        go_on: how a command that saves what it does goes on after an interruption; "" for one that does not.

    Returns:
        0; 2 for a mistake of the user (one line on stderr); 130 on Ctrl-C; 143 after SIGTERM, 141 when nobody reads the
        output any more.
    """
    stopped = f"stopped; what was done by then is saved, {go_on}" if go_on else "stopped"
    try:
        with _sigterm_stops(stopped):
            command(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {go_on}" if go_on else "interrupted", file=sys.stderr)
        return 130
    except Interrupted:
        print(stopped, file=sys.stderr)
        return 143
    except BrokenPipeError:  # the reader of the output has seen enough (head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


@contextmanager
def _sigterm_stops(message: str) -> Iterator[None]:
    """Stop at once on SIGTERM, with a message, where no training loop is there to save its state first.

    Not by an exception: one that is raised while a destructor happens to run is lost. What is on the disk is whole at
    any moment.
    """

    def stop(_signal, _frame) -> NoReturn:
        os.write(2, f"{message}\n".encode())
        os._exit(143)

    try:
        former = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use only algorithms that give the same bits at every run inside the context; on a CPU all of ours do anyway.

    Raises:
        RuntimeError: by torch, in the context, from an operation (of a user's module) that has no such algorithm.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    former = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(former[0])
        torch.backends.cudnn.benchmark = former[1]


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" prefers a GPU.

    Under torchrun, a GPU without a number is this process's own. It is also made the current one: NCCL and CUDA graphs
    put some of their memory there.

    Raises:
        UserError: for a device that is not here.
    """
    kind = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(kind)
        if device.type == "cuda" and device.index is None:
            own = distributed.local_rank()
            device = torch.device("cuda", torch.cuda.current_device() if own is None else own)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        reason = textwrap.shorten(str(error), 160)  # torch may list every backend it knows
        raise UserError(f"--device {name or repr(name)}: not usable here ({reason}); try --device cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
