"""From cells and rows to the lines of a table: ours beside published, over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.rows import Identity, Row, found
from expressive_losses.experiments.spec import Column, Experiment


def _quartiles(numbers: Sequence[float]) -> list[float]:
    """Return lower quartile, median and upper quartile; of a single number, that number."""
    return statistics.quantiles([*numbers, *numbers] if len(numbers) == 1 else numbers, method="inclusive")


_STATISTICS = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "lower quartile": lambda numbers: _quartiles(numbers)[0],
    "upper quartile": lambda numbers: _quartiles(numbers)[2],
    "min": min,
    "max": max,
}


@dataclass(frozen=True)
class Value:
    """One figure of a line.

    Attributes:
        ours: over the runs; None: not run.
        deviation: standard deviation over the runs; None for fewer than two, or where it says nothing.
        published: the paper's; None where it has none, or one of another data set than ours.
        comparable: whether the two are of the same network, epochs and images.
        images: how many ours is of; more than one number where runs differ, none where it is not of images.
        asked: whether the line has such a figure at all.
    """

    ours: float | None
    deviation: float | None
    published: float | None
    comparable: bool
    images: tuple[int, ...] = ()
    asked: bool = True

    @property
    def difference(self) -> float | None:
        """Ours - published, where that means anything."""
        if self.ours is None or self.published is None or not self.comparable:
            return None
        return self.ours - self.published


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        labels: what it is.
        values: by column.
        runs: rows behind it.
        images: how many the figures are of; more than one number where columns differ.
        differs: what our runs have in place of the paper's setting.
    """

    labels: dict[str, str]
    values: dict[str, Value]
    runs: int
    images: tuple[int, ...]
    differs: tuple[str, ...]


def lines(experiment: Experiment, cells: Sequence[Cell], rows: Mapping[Identity, Row]) -> list[Line]:
    """Return the lines of a table, in the order of the grid; cells with equal labels are one line."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.labels.get(name, "") for name in experiment.lines), []).append(cell)
    return [
        _line(experiment, dict(zip(experiment.lines, key, strict=True)), group, rows) for key, group in groups.items()
    ]


def _line(experiment: Experiment, labels: dict[str, str], group: Sequence[Cell], rows: Mapping[Identity, Row]) -> Line:
    pairs = [(cell, row) for cell in group if (row := found(cell, rows)) is not None]
    mine = [row for _, row in pairs]
    shown = {column.verification for column in experiment.columns.values()}
    differs = tuple(
        dict.fromkeys(text for cell, _ in pairs for text in cell.replaced(shown & cell.verifications.keys()))
    )
    published = (group[0].published or {}) if group[0].comparable else {}
    values = {
        name: _value(column, published, mine, comparable=column.percent and not differs)
        if column.verification is None or column.verification in group[0].verifications
        else Value(None, None, None, False, asked=False)
        for name, column in experiment.columns.items()
    }
    images = tuple(dict.fromkeys(count for value in values.values() for count in value.images))
    return Line(labels, values, len(mine), images, differs)


def _value(column: Column, published: Mapping[str, Any], rows: Sequence[Row], comparable: bool) -> Value:
    found = [(row, number) for row in rows if (number := figure_of(row, column)) is not None]
    theirs = pick(published, column.published) if column.published else None
    if not found:
        return Value(None, None, theirs, comparable)
    numbers = [number for _, number in found]
    several = len(numbers) > 1 and column.statistic == "mean"
    deviation = statistics.stdev(numbers) if several else None
    images = tuple(dict.fromkeys(count for row, _ in found for count in images_of(row, column)))
    return Value(_STATISTICS[column.statistic](numbers), deviation, theirs, comparable, images)


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
    return () if column.figure == "training_seconds" else (row["images"],)


def pick(values: Mapping[str, Any], path: str | Sequence[str]) -> float | None:
    """Return the number at a path (``verify.bab.verified`` or a list of keys), of an accuracy its percentage."""
    here: Any = values
    for key in path.split(".") if isinstance(path, str) else path:
        if not isinstance(here, Mapping) or key not in here:
            return None
        here = here[key]
    if isinstance(here, Mapping):
        here = here.get("percent")
    return None if here is None else float(here)
