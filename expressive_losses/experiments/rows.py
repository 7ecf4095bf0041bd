"""The rows of an experiment: collected from its cells, kept in one file, found again for its tables."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expressive_losses.errors import UserError
from expressive_losses.experiments import grid
from expressive_losses.experiments.execute import row_of_cell
from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.question import answers
from expressive_losses.experiments.spec import Experiment, Scale, ScaleSpec
from expressive_losses.locking import held
from expressive_losses.results import QUESTION
from expressive_losses.run import write_text

Row = Mapping[str, Any]
Identity = tuple[str, ...]


def collect(cells: Sequence[Cell], root: Path, path: Path) -> int:
    """Write the rows of all cells that are done, in the order of the grid; return how many there are.

    Rows of the file whose cells are not in ``root`` (another machine's, another seed's) are kept, before them. Several
    runners may write to the folder, each for a moment.

    Args:
        cells: of the experiment.
        root: folder of all cells.
        path: the rows, JSON lines.

    Raises:
        FolderInUse: another process has the folder of the rows for a minute.
    """
    found_now = [(cell, row_of_cell(cell, root)) for cell in cells if cell.runs]  # slow: before the folder is taken
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.parent):
        known = by_command(read(path))
        for cell, row in found_now:
            if row is not None:
                for former in [key for key, _ in _of(cell, known)]:
                    del known[former]
                known[identity(row)] = row
        write_text(path, "".join(json.dumps(row) + "\n" for row in known.values()))
    return len(known)


def read(path: Path) -> list[Row]:
    """Return the rows of a file; none where there is no file.

    A last line that was cut off is left out, with a warning: the next to write the file drops it.

    Raises:
        UserError: a line that is no row.
    """
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    if _is_cut_off(last):
        print(f"{path}: line {len(lines) + 1}, the last, was cut off and is left out", file=sys.stderr, flush=True)
    else:
        lines.append(last)
    return [_parsed(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line]


def _is_cut_off(last: bytes) -> bool:
    try:
        json.loads(last or "{}")
    except ValueError:
        return True
    return False


def _parsed(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
        identity(row)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{where} is no row of an experiment: mend it, or delete it to have it made again") from None
    return row


def cells_of_page(experiment: Experiment, scale: Scale, rows: Mapping[Identity, Row]) -> list[Cell]:
    """Return the cells that a page is of: those of the experiment's seeds, and those of other seeds that have a row."""
    own = own_seeds(experiment, scale)
    others = sorted({row["seed"] for row in rows.values()} - set(own))
    cells = grid.cells(experiment, scale, [*own, *others])
    return [cell for cell in cells if cell.seed in own or found(cell, rows) is not None]


def own_seeds(experiment: Experiment, scale: Scale) -> tuple[int, ...]:
    """Return the seeds of an experiment at a scale."""
    return experiment.scales.get(scale, ScaleSpec()).seeds or experiment.seeds


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
    return min((row for _, row in _of(cell, rows)), key=lambda row: "then" not in row, default=None)


def _of(cell: Cell, rows: Mapping[Identity, Row]) -> list[tuple[Identity, Row]]:
    """Return the rows of a cell with their identities; whether training and seed are the same, these say already."""
    first, *rest = cell.commands
    trained = (_command(first), str(cell.seed))
    return [(key, row) for key, row in rows.items() if key[:2] == trained and _is_of(cell, rest, row)]


def _is_of(cell: Cell, then: Sequence[str], row: Row) -> bool:
    """Return whether a row of the same command and seed is of this cell: same config and verifications.

    The same command trains another network when the config file that it names has changed since, and asks something
    else when a default of verification has: rows say which config and which questions they are of (older ones do not).
    """
    if "config" in row and row["config"] != cell.resolved.fingerprint():
        return False
    verified = row.get("verify", {})
    if list(row.get("then", then)) != list(then) or set(verified) != set(cell.verifications):
        return False
    return all(answers(made, cell, name) for name, made in verified.items())


def _command(text: str) -> str:
    """Return a command without its seed, and without what changes no figure."""
    return re.sub(r" --(quiet|resume|seed \d+)(?= |$)", "", text)
