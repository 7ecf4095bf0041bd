"""One process at a time in one folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from expressive_losses.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows: the lock is then only the file's presence in messages
    fcntl = None


class FolderInUse(UserError):
    """Another process holds the folder."""


class FolderLock:
    """An advisory lock that the system drops when its process dies, however it dies.

    Args:
        folder: must exist.

    Raises:
        FolderInUse: when another process holds it.
        UserError: when the folder is not writable.
    """

    def __init__(self, folder: Path) -> None:
        path = Path(folder) / ".lock"
        try:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held until release
        except OSError as error:
            raise UserError(f"{folder}: cannot write here: {error.strerror}; choose another --out") from None
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise FolderInUse(f"{folder} is in use by another process; wait for it or choose another --out") from None
        with suppress(OSError):  # for people only: the lock holds without it, also on a full disk
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n")
            self._file.flush()

    def release(self) -> None:
        """Let go; safe to call twice."""
        with suppress(OSError):  # the process number in it, refused by a full disk, is tried again
            self._file.close()


def is_free(folder: Path) -> bool:
    """Return whether no other process holds a folder, or there is none; whether it is writable is not the question."""
    if not folder.is_dir():
        return True
    try:
        FolderLock(folder).release()
    except FolderInUse:
        return False
    except UserError:
        return True
    return True


@contextmanager
def held(folder: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold a folder inside the context; other processes have it too, each for a moment, and are waited for.

    Args:
        folder: must exist.
        seconds: how long to wait at most.

    Raises:
        FolderInUse: when another process holds it for longer.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            lock = FolderLock(folder)
            break
        except FolderInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()
