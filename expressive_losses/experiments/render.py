"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from expressive_losses.experiments.spec import Experiment, Scale
from expressive_losses.experiments.table import Line, Value

NOT_RUN = "not run"
#: Percentage points from which on a difference is marked.
MARKED = 1.0
_WARNINGS = {
    "smoke": "SMOKE SCALE: a few images of handwritten digits, a tiny network, a few epochs, whatever a line is named "
    "after. The figures show that the chain runs; they say nothing about the method. Published figures "
    "are of other data and left out.",
    "cpu": "CPU SCALE: small networks and short training. Where a line names what differs from the paper, the "
    "published figure beside it is of another setting; where the data set differs, it is left out.",
    "full": "",
}


def markdown(experiment: Experiment, scale: Scale, lines: Sequence[Line]) -> str:
    """Return the page of a table: title, warning of the scale, table."""
    head = [f"# {experiment.title}", "", f"Scale: {scale}."]
    parts = [*head, *_paragraph(f"**{_WARNINGS[scale]}**" if _WARNINGS[scale] else "")]
    parts += _paragraph(experiment.note) + _paragraph(_everywhere(lines))
    parts += ["", *_table(experiment, lines), "", _legend(experiment, lines)]
    return "\n".join(parts) + "\n"


def _paragraph(text: str) -> list[str]:
    return ["", " ".join(text.split())] if text else []


def _shared(lines: Sequence[Line]) -> list[str]:
    """Return what all lines that were run have in place of the paper's setting, if there is more than one."""
    run = [line.differs for line in lines if line.runs]
    return [text for text in run[0] if all(text in other for other in run)] if len(run) > 1 else []


def _everywhere(lines: Sequence[Line]) -> str:
    shared = _shared(lines)
    return f"In place of the paper's, in every line that was run: {', '.join(shared)}." if shared else ""


def _legend(experiment: Experiment, lines: Sequence[Line]) -> str:
    text = "Accuracies are percent of the images; mean ± standard deviation over the runs."
    if _with_published(experiment, lines):
        text += (
            " A published figure in parentheses is of another setting than ours: above the table is what all lines "
            "have in its place, the last column has the rest. Differences are given where there is none; "
            f"bold from {MARKED:g} on."
        )
    done = sum(line.runs > 0 for line in lines)
    return f"{text} {done} of {len(lines)} lines were run."


def _table(experiment: Experiment, lines: Sequence[Line]) -> list[str]:
    header, body = _header(experiment, lines), _body(experiment, lines)
    rows = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return rows + ["| " + " | ".join(cells) + " |" for cells in body]


def _with_published(experiment: Experiment, lines: Sequence[Line]) -> list[str]:
    """Return the columns that have a published figure somewhere."""
    return [name for name in experiment.columns if any(line.values[name].published is not None for line in lines)]


def _with_difference(lines: Sequence[Line]) -> bool:
    return any(set(line.differs) - set(_shared(lines)) for line in lines)


def _header(experiment: Experiment, lines: Sequence[Line]) -> list[str]:
    compared, header = _with_published(experiment, lines), list(experiment.lines)
    for name in experiment.columns:
        header += [name, "published", "difference"] if name in compared else [name]
    header += ["runs", "images"]
    return [*header, "in place of the paper's"] if _with_difference(lines) else header


def _body(experiment: Experiment, lines: Sequence[Line]) -> list[list[str]]:
    compared, width = _with_published(experiment, lines), len(_header(experiment, lines))
    shared = _shared(lines)
    return [_cells(experiment, compared, line, shared)[:width] for line in lines]


def _cells(experiment: Experiment, compared: Sequence[str], line: Line, shared: Sequence[str]) -> list[str]:
    cells = [line.labels[name] for name in experiment.lines]
    for name in experiment.columns:
        value = line.values[name]
        cells.append(_ours(value) + (_of_images(value) if len(line.images) > 1 else ""))
        if name in compared:
            cells += [_published(value), _difference(value)]
    images = str(*line.images) if len(line.images) == 1 else ""
    return [*cells, str(line.runs), images, ", ".join(text for text in line.differs if text not in shared)]


def _ours(value: Value) -> str:
    if value.ours is None:
        return NOT_RUN if value.asked else ""
    return _number(value.ours) + (f" ± {value.deviation:.2f}" if value.deviation is not None else "")


def _of_images(value: Value) -> str:
    """Return of how many images a figure is, where not all of a line are of the same ones."""
    return f" (of {' and '.join(map(str, value.images))})" if value.images else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _published(value: Value) -> str:
    """The published figure, in parentheses where ours is of another setting."""
    text = _number(value.published)
    return f"({text})" if text and value.ours is not None and not value.comparable else text


def _difference(value: Value) -> str:
    if value.difference is None:
        return ""
    text = f"{value.difference:+.2f}"
    return f"**{text}**" if abs(value.difference) >= MARKED else text


def comma_separated(experiment: Experiment, scale: Scale, lines: Sequence[Line]) -> str:
    """Return the table as CSV: one column for each number, empty where it was not run."""
    names = [*experiment.lines, "scale"]
    for name in experiment.columns:
        names += [name, f"{name} deviation", f"{name} published", f"{name} images"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, "runs", "differs"])
    for line in lines:
        cells: list[object] = [*line.labels.values(), scale]
        for value in line.values.values():
            cells += [value.ours, value.deviation, value.published, " ".join(map(str, value.images))]
        writer.writerow([*cells, line.runs, "; ".join(line.differs)])
    return file.getvalue()


_LATEX = str.maketrans(
    {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "±": r"$\pm$", "{": r"\{", "}": r"\}"}
)


def latex(experiment: Experiment, scale: Scale, lines: Sequence[Line]) -> str:
    """Return the table as LaTeX (booktabs), with its scale in the caption."""
    header = _header(experiment, lines)
    body = [" & ".join(map(_latex, cells)) + r" \\" for cells in _body(experiment, lines)]
    caption = f"{experiment.title} ({scale} scale). {_WARNINGS[scale]}".strip()
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
            r"\end{table}",
            "",
        ]
    )


def _latex(text: str) -> str:
    if text.startswith("**"):
        return rf"\textbf{{{_latex(text.strip('*'))}}}"
    return text.translate(_LATEX)
