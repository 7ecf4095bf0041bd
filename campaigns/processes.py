"""Processes to be killed: commands run in forks of this one, with signals, limits, small disks and other users.

This process has imported everything already, so that a run takes a fraction of a second.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal that killed it), what it said, and seconds."""

    code: int
    said: str
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether it ended as a user's mistake does: exit code 2, one line."""
        return self.code == 2 and self.said.startswith("error: ") and self.said.count("\n") == 1


def run(
    main: Callable[[list[str]], int],
    arguments: list[str],
    send: tuple[float, int] | None = None,
    before: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a command in a fork.

    Args:
        send: seconds after which a signal is sent, and the signal.
        before: called in the child first.
    """
    ears, mouth = os.pipe()  # no file: its size may be limited
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        become(main, arguments, before, mouth)
    os.close(mouth)
    code = None
    while send and code is None and time.monotonic() - started < send[0]:
        code = _poll(child)
        time.sleep(0.002)
    if code is None:
        code = end(child, send[1] if send else None)
    with open(ears, encoding="utf-8") as file:
        return Ended(code, file.read(), time.monotonic() - started)


def become(main, arguments, before, stderr: int) -> None:
    """Be the child: never returns."""
    code = 1
    try:
        os.dup2(stderr, 2)
        os.dup2(stderr, 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        code = main(arguments)
        sys.stderr.flush()
    except BaseException:  # a traceback is what the parent looks for
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _poll(child: int) -> int | None:
    """Return the exit code of a child that has ended, else ``None``."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def end(child: int, signal_: int | None) -> int:
    """Send the signal, wait, and return the exit code."""
    if signal_ is not None:
        os.kill(child, signal_)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def signal_after(owner: type, method: str, calls: int, signal_: int) -> None:
    """Make this process send itself a signal when a method was called so many times."""
    real, left = getattr(owner, method), [calls]

    def counted(*arguments, **options):
        result = real(*arguments, **options)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal_)
        return result

    setattr(owner, method, counted)


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def be_nobody() -> None:
    """Give up the rights of root."""
    os.environ["MPLCONFIGDIR"] = tempfile.gettempdir()
    os.setgid(65534)
    os.setuid(65534)


class NoDisk(Exception):
    """Only root may mount a file system, and not everywhere."""


@contextmanager
def tiny_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a file system of that size in a new folder, and take it away again.

    Raises:
        NoDisk: where that is not allowed.
    """
    folder.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        folder.rmdir()
        raise NoDisk(str(error)) from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def enlarge(disk: Path) -> None:
    """Make room on a tiny disk."""
    _mount("-o", "remount,size=64m", str(disk))


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)
