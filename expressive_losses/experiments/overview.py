"""The list of all tables and figures with what was run of each: the generated part of docs/reproduction.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expressive_losses.errors import UserError
from expressive_losses.experiments.grid import cells
from expressive_losses.experiments.report import rows_file
from expressive_losses.experiments.rows import Row, by_command, found, seeds_of
from expressive_losses.experiments.spec import SCALES, Experiment, Scale, load
from expressive_losses.experiments.table import lines
from expressive_losses.results import read_rows
from expressive_losses.run import write_text

BEGIN, END = "<!-- generated:begin -->\n", "<!-- generated:end -->\n"
#: Scales whose figures mean something.
_COMPARED: tuple[Scale, ...] = ("cpu", "full")


def overview(files: Sequence[Path], results: Path) -> str:
    """Return two tables: a line for each experiment file, with its command and what was run of it at each scale, and at
    what cost; and a line for each of their lines that has a figure of ours and a published one.

    Args:
        files: experiment files.
        results: folder of the rows, in the repository.
    """
    state_lines = ["| table or figure | command | smoke | cpu | full |", "|---|---|---|---|---|"]
    beside = ["| table | line | ours (published) | ours is of |", "|---|---|---|---|"]
    for path in files:
        experiment = load(path)
        at = {scale: _Rows(experiment, scale, results) for scale in SCALES}
        state = " | ".join(rows.state() for rows in at.values())
        state_lines.append(f"| {experiment.title} | `scripts/{experiment.name}.sh` | {state} |")
        beside += [line for scale in _COMPARED for line in at[scale].beside_published()]
    heading = "Ours beside the published figures, at the scales at which that means something:"
    return "\n".join([*state_lines, "", heading, "", *beside]) + "\n"


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


class _Rows:
    """What was run of an experiment at a scale."""

    def __init__(self, experiment: Experiment, scale: Scale, results: Path) -> None:
        self._experiment = experiment
        self._link = f"../{results.name}/{scale}/{experiment.name}.md"
        self._rows = by_command(read_rows(rows_file(experiment, scale, results)))
        own, all_seeds = seeds_of(experiment, scale), seeds_of(experiment, scale, rows=self._rows)
        pairs = [(cell, found(cell, self._rows)) for cell in cells(experiment, scale, all_seeds) if cell.runs]
        self._cells = [cell for cell, row in pairs if cell.seed in own or row is not None]
        self._mine = [row for _, row in pairs if row is not None]

    def state(self) -> str:
        """Return "12 of 31 cells, 95 s (AMD EPYC x2)", with a link to the page, or "not run"."""
        if not self._cells:
            return "nothing at this scale"
        if not self._mine:
            return f"not run ({len(self._cells)} cells)"
        devices = ", ".join(dict.fromkeys(row["device"] for row in self._mine))
        count = f"[{len(self._mine)} of {len(self._cells)} cells]({self._link})"
        return f"{count}, {_duration(_seconds(self._mine))} ({devices})"

    def beside_published(self) -> list[str]:
        """Return a line for each line of the table that has a figure of ours and a published one."""
        title, _, _ = self._experiment.title.partition(":")
        written = []
        for line in lines(self._experiment, self._cells, self._rows) if self._mine else ():
            pairs = [
                f"{name} {value.ours:.2f} ({value.published:.2f})"
                for name, value in line.values.items()
                if value.ours is not None and value.published is not None
            ]
            if pairs:
                about = [f"{line.runs} run{'s' if line.runs > 1 else ''}", *line.differs]
                label = ", ".join(line.labels.values())
                written.append(f"| [{title}]({self._link}) | {label} | {', '.join(pairs)} | {', '.join(about)} |")
        return written


def _seconds(rows: Sequence[Row]) -> float:
    """Return the seconds of training and verification, a network that several rows share counted once."""
    training: Mapping[str, float] = {row["command"]: row["training_seconds"] for row in rows}
    return sum(training.values()) + sum(one["seconds"] for row in rows for one in row["verify"].values())


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
