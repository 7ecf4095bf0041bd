"""The list of all tables and figures with what was run of each: the generated part of docs/reproduction.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from expressive_losses.errors import UserError
from expressive_losses.experiments import notes, render
from expressive_losses.experiments.page import Page
from expressive_losses.experiments.report import rows_file
from expressive_losses.experiments.rows import Row, by_command, cells_of_page, found, read
from expressive_losses.experiments.spec import SCALES, Experiment, Scale, load
from expressive_losses.experiments.table import Line, Value, lines
from expressive_losses.run import write_text

BEGIN, END = "<!-- generated:begin -->\n", "<!-- generated:end -->\n"
#: Scales whose figures mean something.
_COMPARED: tuple[Scale, ...] = ("cpu", "full")
_HEADING = (
    "Ours beside the published figures (in parentheses), at the scales at which that means something; ± is the sample "
    "standard deviation (n - 1) over the runs. Differences are given where the setting is the paper's."
)


def overview(files: Sequence[Path], results: Path) -> str:
    """Return a table with a line for each experiment file: its command, what was run of it at each scale, and at what
    cost; and for each file and scale a table of the lines that have a figure of ours and a published one.

    Args:
        files: experiment files.
        results: folder of the rows, in the repository.
    """
    state_lines = ["| table or figure | command | smoke | cpu | full |", "|---|---|---|---|---|"]
    beside: list[str] = []
    for path in files:
        experiment = load(path)
        at = {scale: _Rows(experiment, scale, results) for scale in SCALES}
        state = " | ".join(rows.state() for rows in at.values())
        state_lines.append(f"| {experiment.title} | `scripts/{experiment.name}.sh` | {state} |")
        beside += [text for scale in _COMPARED for text in at[scale].beside_published()]
    return "\n\n".join(["\n".join(state_lines), _HEADING, *beside]) + "\n"


def write_overview(document: Path, files: Sequence[Path], results: Path) -> None:
    """Put the list between the marks of a document.

    Raises:
        UserError: when the document has no such marks, or cannot be read or written.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document}: cannot read the document: {error.strerror}") from None
    if BEGIN not in text or END not in text:
        raise UserError(f"{document}: expected the lines {BEGIN.strip()} and {END.strip()}")
    before, _, rest = text.partition(BEGIN)
    write_text(document, before + BEGIN + overview(files, results) + END + rest.partition(END)[2])


class _Rows:
    """What was run of an experiment at a scale."""

    def __init__(self, experiment: Experiment, scale: Scale, results: Path) -> None:
        self._experiment, self._scale = experiment, scale
        self._link = f"../{results.name}/{scale}/{experiment.name}.md"
        self._rows = by_command(read(rows_file(experiment, scale, results)))
        self._cells = [cell for cell in cells_of_page(experiment, scale, self._rows) if cell.runs]
        self._mine = [row for cell in self._cells if (row := found(cell, self._rows)) is not None]

    def state(self) -> str:
        """Return "12 of 31 cells, 95 s (AMD EPYC x2)", with a link to the page, or "not run"."""
        if not self._cells:
            return "nothing at this scale"
        if not self._mine:
            return f"not run ({_cells(len(self._cells))})"
        devices = ", ".join(dict.fromkeys(row["device"] for row in self._mine))
        count = f"[{len(self._mine)} of {_cells(len(self._cells))}]({self._link})"
        return f"{count}, {_duration(_seconds(self._mine))} ({devices})"

    def beside_published(self) -> list[str]:
        """Return what all lines have in place of the paper's setting, and a table of those with published figures."""
        every = lines(self._experiment, self._cells, self._rows) if self._mine else []
        its = Page(every)
        compared = [(line, pairs) for line in every if (pairs := _pairs(line))]
        if not compared:
            return []
        own = [its.differences(line) for line, _ in compared]
        table = [["line", "ours (published)", "runs"] + ["in place of the paper's"] * any(own)]
        table.append(["---"] * len(table[0]))
        for (line, pairs), differences in zip(compared, own, strict=True):
            table.append([", ".join(line.shown.values()), ", ".join(pairs), notes.runs_of(line), differences])
        title, _, _ = self._experiment.title.partition(":")
        text = ["| " + " | ".join(cells[: len(table[0])]) + " |" for cells in table]
        return [f"[{title}]({self._link}), {self._scale} scale. {its.everywhere()}".rstrip(), "\n".join(text)]


def _pairs(line: Line) -> list[str]:
    """Return "natural 98.31 ± 0.10 (98.33, -0.02)" for each accuracy that has both figures."""
    return [
        f"{name} {render.our_figure(value)} ({_published(value)})"
        for name, value in line.values.items()
        if value.percent and value.ours is not None and value.published is not None
    ]


def _published(value: Value) -> str:
    return ", ".join(filter(None, [render.published_figure(value).strip("()"), render.difference_of(value)]))


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


def _seconds(rows: Sequence[Row]) -> float:
    """Return the seconds of training and verification: what several cells share (a row, a network) counted once."""
    each = by_command(rows).values()
    training = {row["command"]: row["training_seconds"] for row in each}
    return sum(training.values()) + sum(one["seconds"] for row in each for one in row["verify"].values())


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
