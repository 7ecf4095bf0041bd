"""From cells and rows to the lines of a table: ours beside published, over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.rows import Row, found
from expressive_losses.experiments.spec import Column, Experiment

_STATISTICS = {"mean": statistics.fmean, "median": statistics.median, "min": min, "max": max}


@dataclass(frozen=True)
class Value:
    """One figure of a line.

    Attributes:
        ours: over the runs; None: not run.
        deviation: standard deviation over the runs; None for fewer than two, or where it says nothing.
        published: the paper's; None where it has none.
        comparable: whether the two are of the same network, data, epochs and images.
    """

    ours: float | None
    deviation: float | None
    published: float | None
    comparable: bool

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
        images: how many the figures are of; the fewest, where columns differ.
        differs: what our runs have in place of the paper's setting.
    """

    labels: dict[str, str]
    values: dict[str, Value]
    runs: int
    images: int | None
    differs: tuple[str, ...]


def lines(experiment: Experiment, cells: Sequence[Cell], rows: Mapping[tuple[str, ...], Row]) -> list[Line]:
    """Return the lines of a table, in the order of the grid; cells with equal labels are one line."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.labels.get(name, "") for name in experiment.lines), []).append(cell)
    return [
        _line(experiment, dict(zip(experiment.lines, key, strict=True)), group, rows) for key, group in groups.items()
    ]


def _line(
    experiment: Experiment, labels: dict[str, str], group: Sequence[Cell], rows: Mapping[tuple[str, ...], Row]
) -> Line:
    pairs = [(cell, row) for cell in group if (row := found(cell, rows)) is not None]
    mine = [row for _, row in pairs]
    differs = tuple(dict.fromkeys(name for cell, row in pairs for name in differences(cell, row)))
    values = {
        name: _value(column, group[0].published, mine, comparable=column.percent and not differs)
        for name, column in experiment.columns.items()
    }
    return Line(labels, values, len(mine), min(map(_images, mine), default=None), differs)


def differences(cell: Cell, row: Row) -> list[str]:
    """Return what a run has in place of the paper's setting: "network cnn_small", "4 epochs", "20 images"."""
    ours, paper = cell.resolved, cell.paper
    found = []
    if ours.model != paper.model:
        found.append(f"network {ours.model.name}")
    if ours.data.name != paper.data.name:
        found.append(f"data {ours.data.name}")
    if float(ours.eps.target) != float(paper.eps.target):
        found.append(f"eps {ours.eps.target.text}")
    if ours.training.epochs != paper.training.epochs:
        found.append(f"{ours.training.epochs} epochs")
    if any(asked.first is not None for asked in cell.verifications.values()):
        found.append(f"{_images(row)} images")
    return found


def _value(column: Column, published: Mapping[str, Any] | None, rows: Sequence[Row], comparable: bool) -> Value:
    numbers = [number for row in rows if (number := pick(row, column.figure)) is not None]
    theirs = pick(published or {}, column.published) if column.published else None
    if not numbers:
        return Value(None, None, theirs, comparable)
    several = len(numbers) > 1 and column.statistic == "mean"
    deviation = statistics.stdev(numbers) if several else None
    return Value(_STATISTICS[column.statistic](numbers), deviation, theirs, comparable)


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


def _images(row: Row) -> int:
    return min([row["images"], *(one["images"] for one in row.get("verify", {}).values())])
