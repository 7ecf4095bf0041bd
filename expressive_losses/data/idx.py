"""Read the IDX files of the MNIST family, plain or gzipped, without writing anything."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from expressive_losses.errors import UserError

_UINT8 = 0x08


def read_idx(path: Path) -> np.ndarray:
    """Return the array of unsigned bytes in an IDX file.

    The format: two zero bytes, the element type, the number of dimensions, each dimension as a big-endian
    32-bit integer, then the elements, last dimension fastest.

    Args:
        path: the file; ``.gz`` is decompressed in memory.

    Raises:
        UserError: when the file is not a complete IDX file of unsigned bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error)) from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8:
        raise _damaged(path, "it does not start like an IDX file of unsigned bytes")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise _damaged(path, "its header is cut off")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(np.int64)
    if len(content) - start != shape.prod():
        raise _damaged(path, f"it holds {len(content) - start} bytes of data, its header says {shape.prod()}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # a copy is writable, as torch wants it


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; delete it and fetch it again")
