"""Sharing a data set among processes: which images are whose, and where each writes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from expressive_losses.errors import UserError


class Shard(NamedTuple):
    """The images ``number``, ``number + count``, ``number + 2 count``, ... of a data set.

    Interleaved, because neighbours in a data set are often alike (sorted by class, for instance): the shards then take
    about the same time.

    Attributes:
        number: from 0 to ``count`` - 1.
        count: of shards.
    """

    number: int
    count: int

    def indices(self, images: int) -> range:
        """Return the indices of this shard's images in a data set of ``images``."""
        return range(self.number, images, self.count)

    def folder(self, out: Path | str) -> Path:
        """Return where this shard of a run in ``out`` writes: ``out/shard-0-of-4``."""
        return Path(out) / f"shard-{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def make_shard(number: int, count: int) -> Shard:
    """Return the shard.

    Raises:
        UserError: unless 0 <= number < count.
    """
    if not 0 <= number < count:
        raise UserError(
            f"shard {number}/{count}: expected i/n with i from 0 to n - 1, so the last one is {count - 1}/{count}"
        )
    return Shard(number, count)


def parse_shard(text: str) -> Shard:
    """Return the shard that ``--shard i/n`` names, i counting from 0.

    Raises:
        UserError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not found:
        raise UserError(f"shard '{text}': expected i/n such as 0/4, counting from 0")
    return make_shard(*map(int, found.groups()))


def shard_of_rank() -> Shard | None:
    """Return the shard of this process under torchrun (``RANK`` of ``WORLD_SIZE``); ``None`` in a single process.

    Raises:
        UserError: when these environment variables are not what torchrun sets.
    """
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and count.isdecimal()):
        raise UserError(f"expected the numbers that torchrun sets in RANK and WORLD_SIZE, got {rank} and {count}")
    return make_shard(int(rank), int(count)) if int(count) > 1 else None


def asked_indices(head: Mapping[str, Any]) -> range:
    """Return the indices of the images that a ledger with this head must have when it is complete."""
    shard = head.get("shard")
    return Shard(*shard).indices(head["images"]) if shard else range(head["images"])
