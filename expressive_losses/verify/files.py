"""Writing results: whole files or none, and a refusal of the file system as one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expressive_losses.errors import UserError


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn what the file system refuses inside the context into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or path}: cannot write: {error.strerror or error}"
        raise UserError(f"{reason}; make room there, or choose another --out") from None


def write_whole(path: Path, text: str) -> None:
    """Write a text file, on the disk when this returns; a reader sees the old file or the new one, never half of it.

    Raises:
        UserError: when the file system refuses.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
