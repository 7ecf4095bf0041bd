"""The rows of an experiment: collected from its cells, kept in one file, found again for its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expressive_losses.experiments.execute import row_of_cell
from expressive_losses.experiments.grid import Cell
from expressive_losses.results import read_rows
from expressive_losses.run import write_text

Row = Mapping[str, Any]


def collect(cells: Sequence[Cell], root: Path, path: Path) -> int:
    """Write the rows of all cells that are done, in the order of the grid; return how many there are.

    Rows of the file whose cells are not in ``root`` (another machine's, another seed's) are kept.

    Args:
        cells: of the experiment.
        root: folder of all cells.
        path: the rows, JSON lines.
    """
    known = by_command(read_rows(path))
    for cell in cells:
        row = row_of_cell(cell, root) if cell.runs else None
        if row is not None:
            known[identity(row)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in known.values()))
    return len(known)


def by_command(rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    """Return the rows by what made them: their commands."""
    return {identity(row): row for row in rows}


def identity(row: Row) -> tuple[str, ...]:
    """Return the commands of a row: a cell of the grid has the same."""
    return (row["command"], *row.get("then", ()))


def found(cell: Cell, rows: Mapping[tuple[str, ...], Row]) -> Row | None:
    """Return the row of a cell, or None where it was not run."""
    return rows.get(tuple(cell.commands))
