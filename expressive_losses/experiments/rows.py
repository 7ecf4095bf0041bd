"""The rows of an experiment: collected from its cells, kept in one file, found again for its tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expressive_losses.experiments.execute import row_of_cell
from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.question import question
from expressive_losses.results import QUESTION, read_rows
from expressive_losses.run import write_text

Row = Mapping[str, Any]
Identity = tuple[str, ...]


def collect(cells: Sequence[Cell], root: Path, path: Path) -> int:
    """Write the rows of all cells that are done, in the order of the grid; return how many there are.

    Rows of the file whose cells are not in ``root`` (another machine's, another seed's) are kept, before them.

    Args:
        cells: of the experiment.
        root: folder of all cells.
        path: the rows, JSON lines.
    """
    known = by_command(read_rows(path))
    for cell in cells:
        row = row_of_cell(cell, root) if cell.runs else None
        if row is not None:
            for former in [key for key, one in known.items() if _is_of(cell, one)]:
                del known[former]
            known[identity(row)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in known.values()))
    return len(known)


def by_command(rows: Sequence[Row]) -> dict[Identity, Row]:
    """Return the rows by what made them."""
    return {identity(row): row for row in rows}


def identity(row: Row) -> Identity:
    """Return what made a row: command of training, seed, and the commands of verification.

    Rows of runs by hand (``python -m expressive_losses.results``) have in place of these commands the names of their
    verifications, with what each asked as far as the row says it.
    """
    asked = [json.dumps([name, *(one.get(key) for key in QUESTION)]) for name, one in row.get("verify", {}).items()]
    return (_command(row["command"]), str(row["seed"]), *row.get("then", sorted(asked)))


def found(cell: Cell, rows: Mapping[Identity, Row]) -> Row | None:
    """Return the row of a cell, or None where it was not run; the runner's before one of a run by hand."""
    candidates = [row for row in rows.values() if _is_of(cell, row)]
    return min(candidates, key=lambda row: "then" not in row, default=None)


def _is_of(cell: Cell, row: Row) -> bool:
    """Return whether a row is of this cell: same training, seed and verifications.

    The same command trains another network when the config file that it names has changed since: rows say which
    config they are of (older ones do not).
    """
    first, *rest = cell.commands
    if (_command(row["command"]), str(row["seed"])) != (_command(first), str(cell.seed)):
        return False
    if "config" in row and row["config"] != cell.resolved.fingerprint():
        return False
    if "then" in row:
        return list(row["then"]) == rest
    return set(row.get("verify", ())) == set(cell.verifications) and _asked_the_same(cell, row)


def _asked_the_same(cell: Cell, row: Row) -> bool:
    for name, made in row.get("verify", {}).items():
        wanted = question(cell, name)
        if any(made[key] != wanted[key] for key in QUESTION if key in made):
            return False
    return True


def _command(text: str) -> str:
    """Return a command without its seed, and without what changes no figure."""
    return re.sub(r" --(quiet|resume|seed \d+)(?= |$)", "", text)
