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
            for former in _identities(cell):
                known.pop(former, None)
            known[identity(row)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in known.values()))
    return len(known)


def by_command(rows: Sequence[Row]) -> dict[Identity, Row]:
    """Return the rows by what made them."""
    return {identity(row): row for row in rows}


def identity(row: Row) -> Identity:
    """Return what made a row: command of training, seed, and the commands of verification.

    Rows of runs by hand (``python -m expressive_losses.results``) have the names of their verifications in place of the
    commands.
    """
    return (_command(row["command"]), str(row["seed"]), *row.get("then", sorted(row.get("verify", ()))))


def found(cell: Cell, rows: Mapping[Identity, Row]) -> Row | None:
    """Return the row of a cell, or None where it was not run.

    Of a run by hand, what its verifications asked must be what the cell asks, as far as the row says it.
    """
    by_runner, by_hand = _identities(cell)
    if by_runner in rows:
        return rows[by_runner]
    row = rows.get(by_hand)
    return row if row is not None and _asked_the_same(cell, row) else None


def _asked_the_same(cell: Cell, row: Row) -> bool:
    for name, made in row["verify"].items():
        wanted = question(cell, name)
        if any(made[key] != wanted[key] for key in QUESTION if key in made):
            return False
    return True


def _identities(cell: Cell) -> tuple[Identity, Identity]:
    """Return what the row of a cell may be known by: the runner's, and that of a run by hand."""
    first, *rest = cell.commands
    start = (_command(first), str(cell.seed))
    return (*start, *rest), (*start, *sorted(cell.verifications))


def _command(text: str) -> str:
    """Return a command without its seed, and without what changes no figure."""
    return re.sub(r" --(quiet|resume|seed \d+)(?= |$)", "", text)
