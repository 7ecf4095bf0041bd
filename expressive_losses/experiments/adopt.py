"""Finished runs of train.py and verify.py, made by hand, become cells: nothing is trained twice."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Sequence
from pathlib import Path

from expressive_losses import config as configs
from expressive_losses.config import Config
from expressive_losses.experiments.execute import set_aside
from expressive_losses.experiments.grid import Cell, key_of
from expressive_losses.experiments.question import answered, weights_of
from expressive_losses.locking import FolderLock
from expressive_losses.results import row_of
from expressive_losses.run import TRAINED_MODEL


def adopt(run: Path, cells: Sequence[Cell], root: Path) -> list[str]:
    """Copy a finished run, and the verifications inside it, into the cells that train the same network.

    Equal are: every value of the resolved config; and of a verification, the weights and all that is asked.

    Args:
        run: run directory, with any number of folders of verify.py in it.
        cells: of the grid.
        root: folder of all cells.

    Returns:
        What of the cells was found, in words; nothing, when no cell trains this network.

    Raises:
        UserError: a run that is not finished, or cannot be read.
        FolderInUse: another process has the cell.
    """
    row_of(run)
    key = key_of(Config.build(configs.read(run / "config.yaml"), str(run)))
    mine = [cell for cell in cells if cell.key == key]
    if not mine:
        return []
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        there = (folder / "run" / "summary.json").exists()
        found = [] if there else ["network"]
        if not there:
            _copy(run, folder / "run")
        if not filecmp.cmp(run / TRAINED_MODEL, folder / "run" / TRAINED_MODEL, shallow=False):
            return found  # trained again elsewhere: its verifications are of other weights
        weights = weights_of(folder / "run" / TRAINED_MODEL, mine[0].code)
        asked = {cell.verify_folder(name): (cell, name, weights) for cell in mine for name in cell.verifications}
        for name, verification in asked.items():
            for made in sorted(run.glob("verify-*")):
                if answered(made, *verification) and not answered(folder / name, *verification):
                    _copy(made, folder / name)
                    found.append(made.name)
        return found
    finally:
        lock.release()


def _copy(source: Path, target: Path) -> None:
    """Copy a folder without the verifications inside it; what is in its place, unfinished, is set aside."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("verify-*", ".lock"))
    if target.exists():
        set_aside(target)
    partial.rename(target)
