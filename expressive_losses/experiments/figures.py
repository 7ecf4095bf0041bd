"""An experiment as a picture: what its ``figure:`` says, from the lines of its table."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expressive_losses.errors import UserError
from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.groups import said
from expressive_losses.experiments.rows import Identity, Row, found
from expressive_losses.experiments.spec import Experiment, Figure, Scale
from expressive_losses.experiments.table import Line

_MARKERS = "os^vDPX*"
_STYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 3)))
#: Kinds whose panels have equal axes. Ranges are of a few percent, which differ between data sets.
_EQUAL = ("lines", "radii", "bars")


def draw(
    experiment: Experiment,
    scale: Scale,
    lines: Sequence[Line],
    cells: Sequence[Cell],
    rows: Mapping[Identity, Row],
    path: Path,
) -> bool:
    """Draw the figure of an experiment into ``path``; return whether there was anything to draw.

    Where there was nothing, a picture that was there before is removed: it would be of other rows.

    Raises:
        UserError: when the picture cannot be written, or removed.
    """
    axes = drawn(experiment, scale, lines, cells, rows)
    try:
        if axes:
            axes[0].figure.savefig(path, dpi=110)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture: {error.strerror}") from None
    return bool(axes)


@dataclass
class _Panel:
    """One picture and what goes into it.

    Attributes:
        axis: matplotlib's.
        names: the labels that tell series apart, in all panels.
        keys: the series of all panels, by the labels that tell them apart.
        known: the curves so far: each has one colour and one marker in all panels.
    """

    axis: Any
    spec: Figure
    experiment: Experiment
    group: Sequence[Line]
    names: Sequence[str]
    keys: Sequence[tuple]
    known: dict[str, int]

    def series(self) -> dict[tuple, list[Line]]:
        """Return the lines by the labels that tell them apart, in the order of the whole picture."""
        mine = _by(self.group, self.names)
        return {key: mine[key] for key in self.keys if key in mine}

    def called(self, key: Sequence[str], column: str = "") -> str:
        """Return what a series is called, "crown_ibp, kappa_end 0.5"; a column's name where there are several."""
        column = column if len(self.spec.y) > 1 or not key else ""
        return ", ".join([*map(said, self.names, key), *filter(None, [column])])

    def number(self, label: str) -> int:
        """Return the number of a series in the whole picture."""
        return self.known.setdefault(label, len(self.known))

    def look(self, label: str) -> dict[str, str]:
        """Return colour and marker of a series."""
        number = self.number(label)
        return {"color": f"C{number % 10}", "marker": _MARKERS[number % len(_MARKERS)]}

    def shift(self, key: tuple, part: int = 0, parts: int = 1) -> float:
        """Return the place of a part of a series about a value of the x label, the same in all panels, within +-0.4."""
        return 0.8 * ((self.keys.index(key) * parts + part + 0.5) / (len(self.keys) * parts) - 0.5)

    def categories(self) -> dict[str, int]:
        """Mark the values of the x label on the axis; return their places."""
        places = {value: at for at, value in enumerate(dict.fromkeys(line.labels[self.spec.x] for line in self.group))}
        shown = {line.labels[self.spec.x]: line.shown[self.spec.x] for line in self.group}
        self.axis.set_xticks(range(len(places)), [shown[value] for value in places])
        self.axis.set_xlim(-0.6, len(places) - 0.4)
        return places


def drawn(
    experiment: Experiment,
    scale: Scale,
    lines: Sequence[Line],
    cells: Sequence[Cell],
    rows: Mapping[Identity, Row],
) -> list[Any]:
    """Return the axes of the figure, one for each panel of which something was run."""
    spec = experiment.figure
    run = [line for line in lines if line.runs] if spec else []
    if not run:
        return []
    panels = [(key, group, one) for key, group in _by(run, spec.panels).items() for one in _quantities(spec)]
    axes = _axes(len(panels), experiment.title + _WARNINGS[scale], spec.kind)
    names, known = _telling(experiment, spec, [line for line in lines if line.cells]), {}
    keys = list(_by(run, names))
    for axis, (_, group, one) in zip(axes, panels, strict=True):
        axis.set_title(_title(spec, one, group), fontsize=9)
        panel = _Panel(axis, one, experiment, group, names, keys, known)
        if spec.kind == "epochs":
            _epochs(panel, _cells_of(experiment, group, cells), rows)
        else:
            _KINDS[spec.kind](panel)
        axis.tick_params(labelbottom=True, labelleft=True)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6)
    return axes


_WARNINGS = {
    "smoke": " - SMOKE SCALE, says nothing about the method",
    "cpu": " - CPU scale, small networks",
    "full": "",
}


def _quantities(spec: Figure) -> list[Figure]:
    """Return the figure once for each quantity that has an axis of its own."""
    if isinstance(spec.ylabel, str):
        return [spec]
    return [spec.model_copy(update={"y": (name,), "ylabel": label}) for name, label in spec.ylabel.items()]


def _title(spec: Figure, one: Figure, group: Sequence[Line]) -> str:
    """Return the labels of a panel; its quantity, where there are several; and on what its lines were really run."""
    labels = [said(name, group[0].shown[name]) for name in spec.panels]
    quantity = [] if one is spec else [one.ylabel]
    return ", ".join([*labels, *quantity]) + _replaced(spec, group)


def _replaced(spec: Figure, group: Sequence[Line]) -> str:
    """Return on what the lines of a panel were really run, where that is not what they are named after."""
    named = dict.fromkeys(text for line in group for text in line.differs if text.startswith(("data ", "eps ")))
    named |= dict.fromkeys(
        said(name, line.shown[name])
        for line in group
        for name in ("data", "eps")
        if name not in (*spec.panels, spec.x) and " (for " in line.shown.get(name, "")
    )
    return f" (here: {', '.join(named)})" if named else ""


def _axes(count: int, title: str, kind: str) -> list[Any]:
    """Return so many axes of a new picture, up to three in a row."""
    from matplotlib.figure import Figure as Picture  # here: it takes a second to import, and only figures need it

    columns = 2 if count == 4 else min(3, count)
    height = -(-count // columns)
    picture = Picture(figsize=(4.4 * columns, 3.4 * height + 0.4), layout="constrained")
    picture.suptitle(textwrap.fill(title, 60 * columns), fontsize=9)
    equal = kind in _EQUAL
    axes = picture.subplots(height, columns, squeeze=False, sharey=equal, sharex=equal and kind != "bars").flatten()
    for axis in axes[count:]:
        axis.remove()
    return list(axes[:count])


def _cells_of(experiment: Experiment, group: Sequence[Line], cells: Sequence[Cell]) -> list[Cell]:
    inside = {tuple(line.labels.values()) for line in group}
    return [cell for cell in cells if tuple(cell.labels.get(name, "") for name in experiment.lines) in inside]


def _by(lines: Sequence[Line], names: Sequence[str]) -> dict[tuple, list[Line]]:
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(line.labels.get(name, "") for name in names), []).append(line)
    return groups


def _telling(experiment: Experiment, spec: Figure, lines: Sequence[Line]) -> list[str]:
    """Return the labels that are neither the x axis, nor a panel, nor the same throughout; of a scatter the method."""
    if spec.kind == "scatter":
        return ["method"]
    names = [name for name in experiment.lines if name not in (spec.x, *spec.panels)]
    return [name for name in names if len({line.labels[name] for line in lines}) > 1]


def _lines(panel: _Panel) -> None:
    """Columns over a label that is a number, one curve for each column and series."""
    axis, spec = panel.axis, panel.spec
    for key, series in panel.series().items():
        for name, style in zip(spec.y, _STYLES, strict=False):
            points = sorted(
                (float(line.labels[spec.x]), line.values[name].ours, line.values[name].deviation or 0.0)
                for line in series
                if line.values[name].ours is not None
            )
            if points:
                x, y, error = zip(*points, strict=True)
                label = panel.called(key, name)
                axis.errorbar(x, y, error, linestyle=style, ms=3, lw=1, label=label, **panel.look(label))
    axis.set(xlabel=spec.x, ylabel=spec.ylabel, xscale=_scale(spec.log), yscale=_scale(spec.log_y))


def _scale(logarithmic: bool) -> str:
    return "log" if logarithmic else "linear"


def _radii(panel: _Panel) -> None:
    """Columns over the radius that their names end in ("verified 0.1"), one curve for each line of the table."""
    axis, spec = panel.axis, panel.spec
    for key, (line, *_) in panel.series().items():
        trained = f"trained at {panel.called(key)}"
        for kind, style in zip(spec.y, _STYLES, strict=False):
            named = {name: value.ours for name, value in line.values.items() if name.rpartition(" ")[0] == kind}
            points = [(float(name.rpartition(" ")[2]), ours) for name, ours in named.items() if ours is not None]
            if points:
                look = {"linestyle": style, "label": f"{trained}, {kind}", **panel.look(trained)}
                axis.plot(*zip(*points, strict=True), ms=3, **look)
    axis.set(xlabel="eps of the test", ylabel=spec.ylabel)


def _scatter(panel: _Panel) -> None:
    """One column against another, one kind of point for each method."""
    axis, spec = panel.axis, panel.spec
    for key, series in panel.series().items():
        points = [(line.values[spec.x].ours, line.values[spec.y[0]].ours) for line in series]
        points = [point for point in points if None not in point]
        if points:
            label = panel.called(key)
            axis.plot(*zip(*points, strict=True), linestyle="none", ms=4, label=label, **panel.look(label))
    axis.set(xlabel=f"{spec.x} (%)", ylabel=f"{spec.y[0]} (%)")


def _ranges(panel: _Panel) -> None:
    """For each value of a label and each series: the last column as a point, the first two as the ends of a bar."""
    axis, spec, places = panel.axis, panel.spec, panel.categories()
    low, high, middle = spec.y
    for key, mine in panel.series().items():
        shown = [line for line in mine if line.values[middle].ours is not None]
        x = [places[line.labels[spec.x]] + panel.shift(key) for line in shown]
        y = [line.values[middle].ours for line in shown]
        ends = [[_distance(line, middle, end) for line in shown] for end in (low, high)]
        label = panel.called(key)
        axis.errorbar(x, y, ends, linestyle="none", elinewidth=1, ms=4, label=label, **panel.look(label))
    axis.set(xlabel=spec.x, ylabel=f"{low}, {middle}, {high} ({spec.ylabel})")


def _distance(line: Line, middle: str, end: str) -> float:
    """Return how far an end of a bar is from its middle; 0 for one run, which has no ends."""
    ours = line.values[end].ours
    return 0.0 if ours is None else abs(line.values[middle].ours - ours)


def _bars(panel: _Panel) -> None:
    """For each value of a label one bar for each series and column."""
    axis, spec, places = panel.axis, panel.spec, panel.categories()
    width = min(0.4, 0.8 / (len(panel.keys) * len(spec.y)))
    for key, mine in panel.series().items():
        for part, name in enumerate(spec.y):
            shown = [line for line in mine if line.values[name].ours is not None]
            x = [places[line.labels[spec.x]] + panel.shift(key, part, len(spec.y)) for line in shown]
            heights = [line.values[name].ours for line in shown]
            error = [line.values[name].deviation or 0.0 for line in shown]
            label = panel.called(key, name)
            axis.bar(x, heights, width, yerr=error, color=panel.look(label)["color"], label=label)
            for place in (place for place, height in zip(x, heights, strict=True) if height == 0):
                axis.annotate("0", (place, 0), ha="center", va="bottom", fontsize=6)  # else it looks as if not run
    axis.set(xlabel=spec.x, ylabel=spec.ylabel)


def _epochs(panel: _Panel, cells: Sequence[Cell], rows: Mapping[Identity, Row]) -> None:
    """What was observed after each epoch, one curve for each cell."""
    axis, spec = panel.axis, panel.spec
    seeds = {cell.seed for cell in cells}
    for cell in cells:
        row = found(cell, rows)
        for name in spec.y if row is not None else ():
            points = [(one["epoch"], one[name]) for one in row["epochs_observed"] if one.get(name) is not None]
            if points:
                parts = [name] * (len(spec.y) > 1) + [cell.labels["method"]] + [f"seed {cell.seed}"] * (len(seeds) > 1)
                label = ", ".join(parts)
                axis.plot(*zip(*points, strict=True), ms=3, lw=1, label=label, **panel.look(label))
    axis.set(xlabel="epoch", ylabel=spec.ylabel)
    axis.locator_params(axis="x", integer=True)


_KINDS: dict[str, Callable[[_Panel], None]] = {
    "lines": _lines,
    "radii": _radii,
    "scatter": _scatter,
    "ranges": _ranges,
    "bars": _bars,
}
