"""What a verification of a cell asks, in the words of a ledger's head, and whether one that was made answers it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from expressive_losses import checkpoint
from expressive_losses.cli.verify import stage_options, verify_parser
from expressive_losses.errors import UserError
from expressive_losses.experiments.grid import Cell
from expressive_losses.registry import VERIFIERS
from expressive_losses.verify import build_stages
from expressive_losses.verify.base import Verifier
from expressive_losses.verify.head import hash_of_weights


def question(cell: Cell, name: str) -> dict[str, Any]:
    """Return what the head of the ledger of a verification says of the question."""
    options, stages = _parsed(tuple(cell.verify_arguments(name)))
    return {
        "dataset": cell.resolved.data.name,
        "split": options.split,
        "first": options.first,
        "shard": None,
        "eps": options.eps or cell.resolved.eps.target.text,
        "stages": [stage.spec() for stage in stages],
        "dtype": options.dtype,
        "seed": options.seed,
    }


def answers(made: Mapping[str, Any], cell: Cell, name: str) -> bool:
    """Return whether a verification that was made is of the question that a cell asks.

    Args:
        made: what it says of its question; rows of older commits do not say all of it.
    """
    asked = question(cell, name)
    said = {key: made[key] for key in asked if key in made}
    return said == {key: asked[key] for key in said} or _completed(said) == {key: asked[key] for key in said}


def answered(folder: Path, cell: Cell, name: str, weights: str) -> bool:
    """Return whether a folder holds a finished verification of these weights and of the question that a cell asks.

    Args:
        weights: from :func:`weights_of`.
    """
    try:
        made = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):  # none, or damaged
        return False
    return made.get("weights_sha256") == weights and answers(made, cell, name)


def weights_of(model: Path, trusted: tuple[str, ...] = ()) -> str:
    """Return the hash of the network of a checkpoint, as the heads of ledgers have it.

    Args:
        model: the checkpoint.
        trusted: import paths that it may use.

    Raises:
        UserError: a checkpoint that cannot be read, or asks for code that is not trusted.
    """
    try:
        about = model.stat()
    except OSError as error:
        raise UserError(f"{model}: cannot read the checkpoint: {error.strerror}") from None
    return _weights_of(model, about.st_mtime_ns, about.st_size, trusted)


@lru_cache(maxsize=4096)
def _weights_of(model: Path, _changed: int, _size: int, trusted: tuple[str, ...]) -> str:
    return hash_of_weights(checkpoint.network_of(checkpoint.read(model), str(model), trusted))


@lru_cache(maxsize=4096)
def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, tuple[Verifier, ...]]:
    options = verify_parser().parse_args(["--model", "MODEL", *arguments])
    return options, build_stages(options.bound, stage_options(options.assignments))


def _completed(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question with the options of its stages that are new since: at their defaults they change nothing."""
    try:
        return {**said, "stages": [VERIFIERS.build(stage).spec() for stage in said.get("stages", ())]}
    except UserError:  # an option, or a stage, that is no more
        return dict(said)
