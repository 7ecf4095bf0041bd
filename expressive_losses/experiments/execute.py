"""One cell: train, verify, measure; whatever is there already is not done again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from expressive_losses import experiment
from expressive_losses.cli.verify import verify
from expressive_losses.errors import UserError
from expressive_losses.experiments import measures
from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.observe import Observer
from expressive_losses.experiments.question import answered, question, weights_of
from expressive_losses.locking import FolderLock
from expressive_losses.results import row_of, verification_of
from expressive_losses.run import TRAINED_MODEL, write_json
from expressive_losses.trainer import Trainer
from expressive_losses.verify.ledger import FILE_NAME as LEDGER


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
    run, model = folder / "run", folder / "run" / TRAINED_MODEL
    if not is_trained(cell, folder.parent):
        observe = Observer(cell.observe, run) if cell.observe else watch
        experiment.train(cell.resolved, run, device, data_root, resume=True, quiet=True, observe=observe)
        worked = True
    weights = _weights(cell, model)
    for name in cell.verifications:
        out = folder / cell.verify_folder(name)
        if not answered(out, cell, name, weights):
            if not _goes_on(out, {"weights_sha256": weights, **question(cell, name)}):
                set_aside(out)
            place = ["--model", str(model), "--out", str(out), "--resume", "--quiet"]
            where = ["--device", str(device), *(["--data-dir", str(data_root)] if data_root else [])]
            verify([*cell.verify_arguments(name), *place, *where, *cell.trust_arguments])
            worked = True
    for name in cell.measures:
        if _measured(folder, name, weights) is None:
            figures = measures.measure(name, model, device, data_root, cell.code)
            write_json(folder / f"{name}.json", {"weights_sha256": weights, "figures": figures})
            worked = True
    return worked


def is_trained(cell: Cell, root: Path) -> bool:
    """Return whether the training of a cell is finished."""
    return (root / cell.key / "run" / "summary.json").exists()


def _weights(cell: Cell, model: Path) -> str:
    """Return the hash of the trained network; "" where nothing is asked of it, which then need not be loaded."""
    return weights_of(model, cell.code) if cell.verifications or cell.measures else ""


def _goes_on(out: Path, asked: Mapping[str, Any]) -> bool:
    """Return whether verification can go on in a folder: not finished, and begun with what is asked, if at all."""
    try:
        with open(out / LEDGER, encoding="utf-8") as file:
            head = json.loads(file.readline() or "{}")
    except (OSError, ValueError):  # none, or one that died while it wrote the first line
        head = {}
    return not (out / "summary.json").exists() and (not head or {key: head.get(key) for key in asked} == dict(asked))


def set_aside(out: Path) -> None:
    """Rename a folder that is of other weights, of what was asked before, or unfinished: it may have taken hours."""
    former = (out.with_name(f"former-{number}-{out.name}") for number in itertools.count(1))
    out.rename(next(place for place in former if not place.exists()))


def _measured(folder: Path, name: str, weights: str) -> dict[str, float] | None:
    """Return what was measured of these weights; None if it was not."""
    try:
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return found["figures"] if found["weights_sha256"] == weights else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        return None


def row_of_cell(cell: Cell, root: Path) -> dict[str, Any] | None:
    """Return the row of a cell, or None while anything of it is missing, or of other weights than the network's.

    Raises:
        UserError: the summary of the training is damaged.
    """
    folder = root / cell.key
    run = folder / "run"
    if not is_trained(cell, root):
        return None
    row = row_of(run)
    try:
        weights = _weights(cell, run / TRAINED_MODEL)
    except UserError:  # the network is gone
        return None
    outs = {name: folder / cell.verify_folder(name) for name in cell.verifications}
    measured = {name: _measured(folder, name, weights) for name in cell.measures}
    if None in measured.values() or not all(answered(out, cell, name, weights) for name, out in outs.items()):
        return None
    verified = {name: verification_of(out) for name, out in outs.items()}
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
