"""Rows to files: Markdown, CSV, LaTeX and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from expressive_losses.experiments import render
from expressive_losses.experiments.figures import draw
from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.rows import Identity, Row, by_command, cells_of_page, read
from expressive_losses.experiments.spec import Experiment, Scale
from expressive_losses.experiments.table import Line, lines
from expressive_losses.run import write_text


def rows_file(experiment: Experiment, scale: Scale, results: Path) -> Path:
    """Return <results>/<scale>/<paper>/<table>.jsonl, or what the experiment has in its place."""
    return results / experiment.rows.get(scale, f"{scale}/{experiment.name}.jsonl")


def page(experiment: Experiment, scale: Scale, results: Path) -> str:
    """Return the table of the rows that are there, of whatever seeds, as Markdown."""
    _, _, found = _read(experiment, scale, results)
    return render.markdown(experiment, scale, found)


def report(experiment: Experiment, scale: Scale, results: Path) -> Path:
    """Render an experiment beside its rows, as :func:`page` does; return the path of the Markdown page.

    Raises:
        UserError: when a file cannot be written.
    """
    path = rows_file(experiment, scale, results)
    cells, rows, found = _read(experiment, scale, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".md"), render.markdown(experiment, scale, found))
    write_text(path.with_suffix(".csv"), render.comma_separated(experiment, scale, found))
    write_text(path.with_suffix(".tex"), render.latex(experiment, scale, found))
    draw(experiment, scale, found, cells, rows, path.with_suffix(".png"))
    return path.with_suffix(".md")


def _read(experiment: Experiment, scale: Scale, results: Path) -> tuple[list[Cell], Mapping[Identity, Row], list[Line]]:
    """Return the cells of a page, the rows that are there, and the lines that they make."""
    rows = by_command(read(rows_file(experiment, scale, results)))
    cells = cells_of_page(experiment, scale, rows)
    return cells, rows, lines(experiment, cells, rows)
