"""What the figures and columns of a table are, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from expressive_losses.experiments.groups import in_short
from expressive_losses.experiments.page import Page
from expressive_losses.experiments.spec import Column, Experiment
from expressive_losses.experiments.table import STAGES, Line, Value
from expressive_losses.verify import build_stages

#: Percentage points from which on a difference is marked.
MARKED = 1.0

_CASCADE = "the cascade, which ends in branch-and-bound"
#: Stages that prove nothing.
_NO_PROOF = ("clean", "pgd")
_STATISTICS = {
    "max": "the highest of the runs",
    "min": "the lowest of the runs",
    "median": "the median of the runs",
    "lower quartile": "the lower quartile of the runs",
    "upper quartile": "the upper quartile of the runs",
}


def legend(experiment: Experiment, page: Page) -> str:
    """Return what the figures, marks and columns of a page are."""
    return " ".join([*_of_figures(experiment, page), *_of_columns(experiment, page)])


def _of_figures(experiment: Experiment, page: Page) -> Iterator[str]:
    columns, values = experiment.columns.values(), [value for line in page.shown for value in line.values.values()]
    said = ["accuracies are percent of the images"] if any(column.percent for column in columns) else []
    if any(column.statistic == "mean" for column in columns):
        said.append("mean and sample standard deviation (n - 1) over the runs")
    if said:
        yield f"{_capital('; '.join(said))}."
    if any(_in_parentheses(value) for value in values):
        yield f"A published figure in parentheses is of another setting than ours{_where(page)}."
    replaced = [text for line in page.shown for text in line.shown.values() if " (for " in text]
    if replaced:
        yield f'"{replaced[0]}": the first was run, in place of the one in parentheses.'
    if any(value.difference is not None for value in values):
        yield f"Differences are given where the setting is the paper's; bold from {MARKED:g} on."
    if any(value.runs == 1 and value.ours is None for value in values):
        yield "–: one run has no extremes and quartiles."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _in_parentheses(value: Value) -> bool:
    return value.published is not None and value.ours is not None and not value.comparable


def _where(page: Page) -> str:
    """Return where a page says what ours has in place of the paper's setting."""
    if not any(page.differences(line) for line in page.shown if line.in_paper):
        return ": above the table stands what ours has in its place" if page.shared else ""
    rest = ", above the table stands what all lines have" if page.shared else ""
    return f": the last column says what ours has in its place{rest}"


def _of_columns(experiment: Experiment, page: Page) -> list[str]:
    """Return a sentence on what is not clear from the names of columns."""
    names: dict[str, list[str]] = {}
    for name, column in experiment.columns.items():
        for meaning in _meanings(name, column, page):
            names.setdefault(meaning, []).append(name)
    said = [f"{', '.join(some)}: {meaning}" for meaning, some in names.items()]
    return [f"{'; '.join(said)}."] if said else []


def _meanings(name: str, column: Column, page: Page) -> Iterator[str]:
    if column.statistic in _STATISTICS:
        yield _STATISTICS[column.statistic]
    if column.stage is not None:
        yield f"verified by {STAGES.get(column.stage, column.stage)} alone"
    elif column.path == ("ibp",):
        yield "interval bounds of training's own evaluation, without what a proof allows for rounding"
    elif column.path[-1] == "adversarial" and column.percent:
        yield "still right under PGD"
    elif column.path[-1] == "verified":
        yield from _proven(name, column, page)


def _proven(name: str, column: Column, page: Page) -> Iterator[str]:
    """Yield what proved the figures of a column, and in which lines something else did; nothing if the name says it."""
    having = [line for line in page.of_figures if line.values[name].asked]
    groups: dict[str, list[Line]] = {}
    for line in having:
        groups.setdefault(" or ".join(map(_verifier, line.bounds[column.verification])), []).append(line)
    most, *others = sorted(groups, key=lambda verifier: -len(groups[verifier])) or [name]
    but = "; ".join(f"by {other} in the lines of {in_short(groups[other], having)}" for other in others)
    if most != name or but:
        yield f"proven by {most}" + (f" ({but})" if but else "")


def _verifier(bound: str) -> str:
    if bound == "cascade":
        return _CASCADE
    names = [stage.name for stage in build_stages(bound) if stage.name not in _NO_PROOF]
    return ", then ".join(STAGES.get(name, name) for name in names)
