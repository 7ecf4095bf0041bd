"""A run directory: what was asked, on what it ran, what was measured, and where to go on.

::

    config.yaml        the resolved config
    environment.json   versions, git commit, device, command
    metrics.jsonl      one row an epoch
    checkpoint.pt      to resume from; checkpoint.previous.pt the one before
    model.pt           the trained network, for verify.py
    summary.json       the final figures
    curves.png         loss, radius and accuracies by epoch
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from expressive_losses import checkpoint
from expressive_losses.config import Config
from expressive_losses.environment import environment
from expressive_losses.errors import UserError
from expressive_losses.locking import FolderLock

#: Names of the resolved config and of the trained network in a run directory.
CONFIG, TRAINED_MODEL = "config.yaml", "model.pt"


class RunDirectory:
    """The files of one training run; one process at a time may hold it.

    Args:
        path: created if missing.
        resume: whether an existing run may be continued; without it a folder that holds a run is refused.

    Raises:
        UserError: not writable, in use by another process, or holding a run while ``resume`` is off.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot create the run directory: {error.strerror}") from None
        self._lock = FolderLock(self.path)
        if not resume and (self.checkpoint.exists() or self.previous.exists()):
            self._lock.release()
            raise UserError(f"{self.path} holds a run already: add --resume to continue it, or choose another --out")

    @property
    def checkpoint(self) -> Path:
        """Where training goes on from."""
        return self.path / "checkpoint.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before that, in case the newest is damaged."""
        return self.path / "checkpoint.previous.pt"

    @property
    def model(self) -> Path:
        """The trained network."""
        return self.path / TRAINED_MODEL

    def start(self, config: Config, device: torch.device) -> None:
        """Write what was asked and on what it runs."""
        self.keep_metrics(0)  # of a run that died before its first checkpoint
        write_text(self.path / CONFIG, yaml.safe_dump(config.resolved(), sort_keys=False))
        write_json(self.path / "environment.json", environment(device))

    def save(self, payload: Mapping[str, Any]) -> None:
        """Write the newest checkpoint and keep the one before; a write that fails changes neither."""
        newest = self.path / "checkpoint.next.pt"
        checkpoint.save(newest, payload)
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        os.replace(newest, self.checkpoint)

    def load(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the newest readable checkpoint (or None), and a note when it is not the newest file.

        Raises:
            UserError: when there are checkpoints and none can be read.
        """
        problems = []
        for path in (self.checkpoint, self.previous):
            if not path.exists():
                continue
            try:
                return checkpoint.read(path), "; ".join(
                    [*problems, f"continuing from {path.name}"]
                ) if problems else None
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))
        return None, None

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl."""
        return read_jsonl(self.path / "metrics.jsonl")

    def keep_metrics(self, epochs: int) -> None:
        """Drop rows (and a torn last line) that a killed process wrote after its last checkpoint."""
        rows = [row for row in self.metrics() if row["epoch"] <= epochs]
        if epochs == 0 and not (self.path / "metrics.jsonl").exists():
            return
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot write metrics: {error.strerror}") from None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the final figures."""
        write_json(self.path / "summary.json", summary)

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()


class Onlooker:
    """Stands for the run directory in processes that share a training but do not write: only the first one does."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pt"
        self.model = self.path / TRAINED_MODEL

    def load(self) -> tuple[None, None]:
        """Return nothing: what the first process has read is sent to the others."""
        return None, None

    def _nothing(self, *_arguments: Any) -> None:
        """Do nothing."""

    start = save = log = finish = keep_metrics = close = _nothing


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically.

    Raises:
        UserError: when the file system refuses.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}; free some space or choose --out") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, without a torn last line; empty when there is no file.

    Raises:
        UserError: when a line before the last is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line)) if line else None
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is damaged") from None
    return rows
