"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from expressive_losses.experiments import notes
from expressive_losses.experiments.notes import MARKED, in_table, with_published
from expressive_losses.experiments.spec import Experiment, Scale
from expressive_losses.experiments.table import Line, Value

NOT_RUN = "not run"
#: In place of an extreme or a quartile of one run.
_ONE_RUN = "–"


def markdown(experiment: Experiment, scale: Scale, lines: Sequence[Line]) -> str:
    """Return the page of a table: title, warning of the scale, table, notes."""
    warning = [f"**{notes.WARNINGS[scale]}**"] if notes.WARNINGS[scale] else []
    header, body = _table(experiment, lines)
    table = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    table += ["| " + " | ".join(cells) + " |" for cells in body]
    head = [f"# {experiment.title}", f"Scale: {scale}.", *warning, *notes.above(experiment, lines)]
    return "\n\n".join([*head, "\n".join(table), *notes.below(experiment, scale, lines)]) + "\n"


def _table(experiment: Experiment, lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return header and body, without columns that would be empty in every line."""
    shown, shared = in_table(lines), notes.shared_differences(lines)
    published, numbers = with_published(experiment, shown), notes.footnotes(lines)
    compared = [name for name in published if any(line.values[name].difference is not None for line in shown)]
    header = list(experiment.lines)
    for name in experiment.columns:
        header += [name, *([f"{name} published"] * (name in published)), *([f"{name} difference"] * (name in compared))]
    header += ["runs", "images"]
    body = [_cells(experiment, line, published, compared, notes.mark(line, lines, numbers)) for line in shown]
    differences = [notes.differences(line, shared) if line.runs else "" for line in shown]
    if not any(differences):
        return header, body
    return [*header, "in place of the paper's"], [[*cells, own] for cells, own in zip(body, differences, strict=True)]


def _cells(
    experiment: Experiment, line: Line, published: Sequence[str], compared: Sequence[str], mark: str
) -> list[str]:
    *first, last = (line.shown[name] for name in experiment.lines)
    cells = [*first, last + mark]
    for name in experiment.columns:
        value = line.values[name]
        cells.append(our_figure(value) + (_of_images(value) if len(line.images) > 1 else ""))
        cells += [published_figure(value)] * (name in published) + [difference_of(value)] * (name in compared)
    return [*cells, notes.runs_of(line), str(*line.images) if len(line.images) == 1 else ""]


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
    header, table = _table(experiment, lines)
    body = [" & ".join(map(_latex, cells)) + r" \\" for cells in table]
    caption = f"{experiment.title} ({scale} scale). {notes.WARNINGS[scale]}".strip()
    said = [*notes.above(experiment, lines), *notes.below(experiment, scale, lines)]
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
