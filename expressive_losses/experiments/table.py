"""From cells and rows to the lines of a table: ours beside published, over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from expressive_losses.experiments.grid import Cell, fraction, in_words
from expressive_losses.experiments.rows import Identity, Row, found
from expressive_losses.experiments.settings import named
from expressive_losses.experiments.spec import Column, Experiment, at

_STATISTICS = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "lower quartile": lambda numbers: statistics.quantiles(numbers, method="inclusive")[0],
    "upper quartile": lambda numbers: statistics.quantiles(numbers, method="inclusive")[2],
    "min": min,
    "max": max,
}


@dataclass(frozen=True)
class Value:
    """One figure of a line.

    Attributes:
        ours: over the runs; None: not run, or one run alone where the figure is an extreme or a quartile of several.
        deviation: sample standard deviation (n - 1) over the runs; None for fewer than two, or where it says nothing.
        published: the paper's; None where it has none, or one of another data set than ours.
        published_deviation: the paper's, over its runs.
        comparable: whether the two are of the same network, epochs and images.
        runs: how many have the figure.
        images: how many ours is of; more than one number where runs differ, none where it is not of images.
        asked: whether the line has such a figure at all.
        percent: an accuracy; differences of seconds and losses mean nothing.
    """

    ours: float | None
    deviation: float | None = None
    published: float | None = None
    published_deviation: float | None = None
    comparable: bool = False
    runs: int = 0
    images: tuple[int, ...] = ()
    asked: bool = True
    percent: bool = True

    @property
    def difference(self) -> float | None:
        """Ours - published, where that means anything."""
        if self.ours is None or self.published is None or not (self.comparable and self.percent):
            return None
        return self.ours - self.published


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        labels: what it is, of the paper's setting.
        shown: the same as pages say it: "mnist (for cifar10)" where another data set, radius or network was run.
        values: by column.
        runs: rows behind it.
        cells: rows that there are when all of it was run; 0: not part of the scale.
        images: how many the figures are of; more than one number where columns differ.
        differs: what our runs have in place of the paper's setting, beside what ``shown`` says.
        in_paper: whether the paper has such a line.
        notes: what there is to know of the published figures.
        seeds: of the rows.
        commits: of the rows' training.
        bounds: by verification: what proves, of the cells that were run, or else of all.
    """

    labels: dict[str, str]
    shown: dict[str, str]
    values: dict[str, Value]
    runs: int
    cells: int
    images: tuple[int, ...]
    differs: tuple[str, ...]
    in_paper: bool = True
    notes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    commits: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def lines(experiment: Experiment, cells: Sequence[Cell], rows: Mapping[Identity, Row]) -> list[Line]:
    """Return the lines of a table, in the order of the grid; cells with equal labels are one line."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.labels.get(name, "") for name in experiment.lines), []).append(cell)
    return [
        _line(experiment, dict(zip(experiment.lines, key, strict=True)), group, rows) for key, group in groups.items()
    ]


def _line(experiment: Experiment, labels: dict[str, str], group: Sequence[Cell], rows: Mapping[Identity, Row]) -> Line:
    asked_for = [cell for cell in group if cell.runs]  # what is not run may have the command of another line
    pairs = [(cell, row) for cell in asked_for if (row := found(cell, rows)) is not None]
    mine, run = [row for _, row in pairs], [cell for cell, _ in pairs]
    asked = {column.verification for column in experiment.columns.values()}
    evaluated = any(column.path == ("adversarial",) for column in experiment.columns.values())
    differs = _unique(
        text
        for cell in run
        for text in cell.replaced([name for name in cell.verifications if name in asked], evaluated)
    )
    first = group[0]
    published = (first.published or {}) if first.comparable else {}
    values = {
        name: _value(column, published, mine, comparable=first.in_paper and not differs)
        if column.verification is None or column.verification in first.verifications
        else Value(None, asked=False)
        for name, column in experiment.columns.items()
    }
    shown = _shown(labels, asked_for)
    said = {f"{name} {text.partition(' (for ')[0]}" for name, text in shown.items() if " (for " in text}
    return Line(
        labels=labels,
        shown=shown,
        values=values,
        runs=len(mine),
        cells=len(asked_for),
        images=_unique(count for value in values.values() for count in value.images),
        differs=tuple(text for text in differs if text not in said) if first.in_paper else (),
        in_paper=first.in_paper,
        notes=_notes(experiment, published, values),
        seeds=_unique(row["seed"] for row in mine),
        commits=_unique(row["git"] for row in mine if "git" in row),
        bounds={name: _unique(cell.verifications[name].bound for cell in run or group) for name in first.verifications},
    )


def _shown(labels: Mapping[str, str], run: Sequence[Cell]) -> dict[str, str]:
    """Return the labels, with what the scale runs first where it is not what the paper has: "0.1 (for 2/255)"."""
    shown = in_words(labels)
    for name in labels:
        pairs = {(named(cell.resolved).get(name), named(cell.paper).get(name)) for cell in run if cell.in_paper}
        ours, papers = pairs.pop() if len(pairs) == 1 else (None, None)
        if ours != papers and labels[name] in (ours, papers):
            shown[name] = f"{ours} (for {fraction(papers)})"
    return shown


def _notes(experiment: Experiment, published: Mapping[str, Any], values: Mapping[str, Value]) -> tuple[str, ...]:
    """Return what the published figures come with: another source than the table's, what verified them, a note."""
    note = published.get("note")
    if all(value.published is None for value in values.values()):
        return (note,) if note else ()
    source, verifier = published.get("source"), published.get("verified_by")
    said = [
        source if source and source != experiment.source else None,
        f"verified by {STAGES.get(verifier.replace('_', '-'), verifier)}" if verifier else None,
        note,
    ]
    return tuple(text for text in said if text)


#: Verifiers in words, by the names of verify.py.
STAGES = {
    "ibp": "IBP",
    "crown": "CROWN",
    "crown-ibp": "CROWN-IBP",
    "alpha-crown": "alpha-CROWN",
    "bab": "branch-and-bound",
    "mip": "a MIP solver",
}


def _unique(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _value(column: Column, published: Mapping[str, Any], rows: Sequence[Row], comparable: bool) -> Value:
    figures = [(row, number) for row in rows if (number := figure_of(row, column)) is not None]
    theirs = at(published, column.published) if column.published else None
    value = Value(None, None, _number(theirs), _deviation(theirs), comparable, len(figures), percent=column.percent)
    if not figures or (len(figures) == 1 and column.statistic not in ("mean", "median")):
        return value
    numbers = [number for _, number in figures]
    several = len(numbers) > 1 and column.statistic == "mean"
    return replace(
        value,
        ours=_STATISTICS[column.statistic](numbers),
        deviation=statistics.stdev(numbers) if several else None,
        images=_unique(count for row, _ in figures for count in images_of(row, column)),
    )


def figure_of(row: Row, column: Column) -> float | None:
    """Return the figure of a column in a row; None where the row has none.

    What a stage verified counts as the accuracy that it verifies alone only if no other bound comes before it.
    """
    if column.stage is None:
        return pick(row, column.figure)
    asked = row["verify"][column.verification]
    if column.stage not in asked["decided_by"]:
        return None
    return 100 * asked["decided_by"][column.stage].get("verified", 0) / asked["images"]


def images_of(row: Row, column: Column) -> tuple[int, ...]:
    """Return of how many images a figure is: those of its verification, else all that training holds out."""
    if column.verification is not None:
        return (row["verify"][column.verification]["images"],)
    return () if column.path == ("training_seconds",) else (row["images"],)


def pick(values: Mapping[str, Any], path: str | Sequence[str]) -> float | None:
    """Return the number at a path (``verify.bab.verified`` or a list of keys), of an accuracy its percentage."""
    return _number(at(values, path))


def _number(value: Any) -> float | None:
    """Return a figure: a number, the ``percent`` of an accuracy, the ``mean`` of a published one with deviation."""
    if isinstance(value, Mapping):
        value = value.get("percent", value.get("mean"))
    return None if value is None else float(value)


def _deviation(value: Any) -> float | None:
    return float(value["deviation"]) if isinstance(value, Mapping) and "deviation" in value else None
