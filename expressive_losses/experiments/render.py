"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from expressive_losses.experiments import notes
from expressive_losses.experiments.legend import MARKED
from expressive_losses.experiments.page import Page
from expressive_losses.experiments.spec import Experiment, Scale
from expressive_losses.experiments.table import Line, Value

NOT_RUN = "not run"
#: In place of an extreme or a quartile of one run.
_ONE_RUN = "–"


def markdown(experiment: Experiment, scale: Scale, lines: Sequence[Line]) -> str:
    """Return the page of a table: title, warning of the scale, table, notes."""
    warning = [f"**{notes.WARNINGS[scale]}**"] if notes.WARNINGS[scale] else []
    page = Page(lines)
    header, body = _table(experiment, page)
    table = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    table += ["| " + " | ".join(cells) + " |" for cells in body]
    head = [f"# {experiment.title}", f"Scale: {scale}.", *warning, *notes.above(experiment, page)]
    return "\n\n".join([*head, "\n".join(table), *notes.below(experiment, scale, page)]) + "\n"


def _table(experiment: Experiment, page: Page) -> tuple[list[str], list[list[str]]]:
    """Return header and body, without columns that would be empty in every line."""
    values = {name: [line.values[name] for line in page.shown] for name in experiment.columns}
    published = [name for name, some in values.items() if any(value.published is not None for value in some)]
    compared = [name for name, some in values.items() if any(value.difference is not None for value in some)]
    header = list(experiment.lines)
    for name in experiment.columns:
        header += [name, *([f"{name} published"] * (name in published)), *([f"{name} difference"] * (name in compared))]
    body = [_cells(experiment, line, published, compared, page.mark(line)) for line in page.shown]
    last = {
        "runs": [notes.runs_of(line) for line in page.shown],
        "images": [str(*line.images) if len(line.images) == 1 else "" for line in page.shown],
        "in place of the paper's": [page.differences(line) for line in page.shown],
    }
    for name, cells in last.items():
        if any(cells):
            header.append(name)
            body = [[*line, cell] for line, cell in zip(body, cells, strict=True)]
    return header, body


def _cells(
    experiment: Experiment, line: Line, published: Sequence[str], compared: Sequence[str], mark: str
) -> list[str]:
    """Return the labels of a line and the figures of its columns."""
    *first, last = (line.shown[name] for name in experiment.lines)
    cells = [*first, last + mark]
    for name in experiment.columns:
        value = line.values[name]
        cells.append(our_figure(value) + (_of_images(value) if len(line.images) > 1 else ""))
        cells += [published_figure(value)] * (name in published) + [difference_of(value)] * (name in compared)
    return cells


def our_figure(value: Value) -> str:
    """Our mean with its deviation, or why there is none."""
    if value.ours is None:
        return (_ONE_RUN if value.runs else NOT_RUN) if value.asked else ""
    return _number(value.ours) + (f" ± {value.deviation:.2f}" if value.deviation is not None else "")


def _of_images(value: Value) -> str:
    """Return of how many images a figure is, where not all of a line are of the same ones."""
    return f" (of {' and '.join(map(str, value.images))})" if value.images else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def published_figure(value: Value) -> str:
    """The published figure, in parentheses where ours is of another setting; its deviation with the paper's digits."""
    deviation = "" if value.published_deviation is None else f" ± {value.published_deviation:g}"
    text = _number(value.published) + deviation
    return f"({text})" if text and value.ours is not None and not value.comparable else text


def difference_of(value: Value) -> str:
    """Ours - published, bold from :data:`MARKED` on, where the setting is the paper's."""
    if value.difference is None:
        return ""
    text = f"{value.difference:+.2f}"
    return f"**{text}**" if abs(value.difference) >= MARKED else text


def comma_separated(experiment: Experiment, scale: Scale, lines: Sequence[Line]) -> str:
    """Return the table as CSV: one column for each number, empty where it was not run."""
    names = [*experiment.lines, "scale"]
    for name in experiment.columns:
        names += [name, *(f"{name} {what}" for what in ("deviation", "published", "published deviation", "images"))]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, "runs", "cells", "differs"])
    for line in lines:
        cells: list[object] = [*line.shown.values(), scale]
        for value in line.values.values():
            cells += [value.ours, value.deviation, value.published, value.published_deviation]
            cells.append(" ".join(map(str, value.images)))
        differs = "; ".join(line.differs) if line.in_paper else "not in the paper"
        writer.writerow([*cells, line.runs, line.cells, differs])
    return file.getvalue()


_LATEX = str.maketrans(
    {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "±": r"$\pm$", "{": r"\{", "}": r"\}"}
)


def latex(experiment: Experiment, scale: Scale, lines: Sequence[Line]) -> str:
    """Return the table as LaTeX (booktabs): scale and warning in the caption, what a page says around it below."""
    page = Page(lines)
    header, table = _table(experiment, page)
    body = [" & ".join(map(_latex, cells)) + r" \\" for cells in table]
    caption = f"{experiment.title} ({scale} scale). {notes.WARNINGS[scale]}".strip()
    said = [*notes.above(experiment, page), *notes.below(experiment, scale, page)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_latex(caption)}}}",
            rf"\begin{{tabular}}{{{'l' * len(experiment.lines)}{'r' * (len(header) - len(experiment.lines) - 1)}l}}",
            r"\toprule",
            " & ".join(_latex(name) for name in header) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {_latex(text)}" for text in said),
            r"\end{table}",
            "",
        ]
    )


def _latex(text: str) -> str:
    if text.startswith("**"):
        return rf"\textbf{{{_latex(text.strip('*'))}}}"
    return text.translate(_LATEX)
