"""One cell: train, verify, measure; whatever is there already is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from expressive_losses import experiment
from expressive_losses.cli.verify import verify
from expressive_losses.errors import UserError
from expressive_losses.experiments import measures
from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.observe import Observer
from expressive_losses.locking import FolderLock
from expressive_losses.results import row_of, verification_of
from expressive_losses.run import TRAINED_MODEL, write_json
from expressive_losses.trainer import Trainer


def execute(
    cell: Cell,
    root: Path,
    device: torch.device,
    data_root: Path | None,
    watch: Callable[[Trainer], None] | None = None,
) -> bool:
    """Do what is missing of a cell; an interrupted part is continued.

    Args:
        cell: what to do.
        root: folder of all cells.
        device: to compute on.
        data_root: folder of the data sets.
        watch: called after every step of training; may stop it by an exception.

    Returns:
        Whether there was anything to do.

    Raises:
        FolderInUse: another process has the cell.
        UserError: from training or verification.
    """
    folder = root / cell.key
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        return complete_cell(cell, folder, device, data_root, watch)
    finally:
        lock.release()


def complete_cell(
    cell: Cell, folder: Path, device: torch.device, data_root: Path | None, watch: Callable[[Trainer], None] | None
) -> bool:
    """Do as :func:`execute` does, in a cell's own folder that the caller has locked."""
    worked = False
    run = folder / "run"
    if not (run / "summary.json").exists():
        observe = Observer(cell.observe, run) if cell.observe else watch
        experiment.train(cell.resolved, run, device, data_root, resume=True, quiet=True, observe=observe)
        worked = True
    for name in cell.verifications:
        out = folder / cell.verify_folder(name)
        if not (out / "summary.json").exists():
            place = ["--model", str(run / TRAINED_MODEL), "--out", str(out), "--resume", "--quiet"]
            where = ["--device", str(device), *(["--data-dir", str(data_root)] if data_root else [])]
            verify([*cell.verify_arguments(name), *place, *where])
            worked = True
    for name in cell.measures:
        if not (folder / f"{name}.json").exists():
            write_json(folder / f"{name}.json", measures.measure(name, run / TRAINED_MODEL, device, data_root))
            worked = True
    return worked


def row_of_cell(cell: Cell, root: Path) -> dict[str, Any] | None:
    """Return the row of a cell, or None while anything of it is missing."""
    folder = root / cell.key
    run = folder / "run"
    try:
        row = row_of(run)
        verified = {name: verification_of(folder / cell.verify_folder(name)) for name in cell.verifications}
        measured = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in cell.measures}
    except (UserError, OSError):
        return None
    row.pop("verify", None)
    seconds = row["training_seconds"] + sum(one["seconds"] for one in verified.values())
    first, *rest = cell.commands
    return {
        **row,
        "labels": dict(cell.labels),
        "command": first,
        "then": rest,
        "seconds": round(seconds, 3),
        "verify": verified,
        **({"measures": measured} if measured else {}),
        **({"epochs_observed": Observer(cell.observe, run).rows()} if cell.observe else {}),
    }
