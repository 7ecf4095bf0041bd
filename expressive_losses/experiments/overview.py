"""The list of all tables and figures with what was run of each: the generated part of docs/reproduction.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expressive_losses.errors import UserError
from expressive_losses.experiments.grid import cells
from expressive_losses.experiments.report import rows_file
from expressive_losses.experiments.rows import Row, by_command, found
from expressive_losses.experiments.spec import SCALES, Experiment, Scale, load
from expressive_losses.results import read_rows
from expressive_losses.run import write_text

BEGIN, END = "<!-- generated:begin -->\n", "<!-- generated:end -->\n"


def overview(files: Sequence[Path], results: Path) -> str:
    """Return one line for each experiment file: command, and what was run of it at each scale, at what cost.

    Args:
        files: experiment files.
        results: folder of the rows, in the repository.
    """
    lines = ["| table or figure | command | smoke | cpu | full |", "|---|---|---|---|---|"]
    for path in files:
        experiment = load(path)
        state = " | ".join(_state(experiment, scale, results) for scale in SCALES)
        lines.append(f"| {experiment.title} | `scripts/{experiment.name}.sh` | {state} |")
    return "\n".join(lines) + "\n"


def write_overview(document: Path, files: Sequence[Path], results: Path) -> None:
    """Put the list between the marks of a document.

    Raises:
        UserError: when the document has no such marks, or cannot be written.
    """
    text = document.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{document}: expected the lines {BEGIN.strip()} and {END.strip()}")
    before, _, rest = text.partition(BEGIN)
    write_text(document, before + BEGIN + overview(files, results) + END + rest.partition(END)[2])


def _state(experiment: Experiment, scale: Scale, results: Path) -> str:
    """Return "12 of 31 cells, 95 s (AMD EPYC x2)", with a link to the page, or "not run"."""
    path = rows_file(experiment, scale, results)
    grid = [cell for cell in cells(experiment, scale) if cell.runs]
    rows = by_command(read_rows(path))
    mine = [row for cell in grid if (row := found(cell, rows)) is not None]
    if not grid:
        return "nothing at this scale"
    if not mine:
        return f"not run ({len(grid)} cells)"
    devices = ", ".join(dict.fromkeys(row["device"] for row in mine))
    link = f"../{results.name}/{scale}/{experiment.name}.md"
    return f"[{len(mine)} of {len(grid)} cells]({link}), {_duration(_seconds(mine))} ({devices})"


def _seconds(rows: Sequence[Row]) -> float:
    """Return the seconds of training and verification, a network that several rows share counted once."""
    training: Mapping[str, float] = {row["command"]: row["training_seconds"] for row in rows}
    return sum(training.values()) + sum(one["seconds"] for row in rows for one in row["verify"].values())


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
