"""An experiment as a picture: what its ``figure:`` says, from the lines of its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expressive_losses.errors import UserError
from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.rows import Identity, Row, found
from expressive_losses.experiments.spec import Experiment, Figure, Scale
from expressive_losses.experiments.table import Line

_MARKERS = "os^vDPX*"


def draw(
    experiment: Experiment,
    scale: Scale,
    lines: Sequence[Line],
    cells: Sequence[Cell],
    rows: Mapping[Identity, Row],
    path: Path,
) -> bool:
    """Draw the figure of an experiment into ``path``; return whether there was anything to draw.

    Raises:
        UserError: when the picture cannot be written.
    """
    axes = drawn(experiment, scale, lines, cells, rows)
    if not axes:
        return False
    try:
        axes[0].figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture: {error.strerror}") from None
    return True


def drawn(
    experiment: Experiment,
    scale: Scale,
    lines: Sequence[Line],
    cells: Sequence[Cell],
    rows: Mapping[Identity, Row],
) -> list[Any]:
    """Return the axes of the figure, one for each panel of which something was run."""
    spec = experiment.figure
    panels = _by([line for line in lines if line.runs], spec.panels, lambda line: line.labels) if spec else {}
    axes = _axes(len(panels), experiment.title + _WARNINGS[scale]) if panels else []
    for axis, (key, group) in zip(axes, panels.items(), strict=True):
        axis.set_title(", ".join(key) + _replaced(group), fontsize=9)
        if spec.kind == "epochs":
            _epochs(axis, spec, _cells_of(experiment, group, cells), rows)
        else:
            _KINDS[spec.kind](axis, spec, experiment, group)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6)
    return axes


_WARNINGS = {
    "smoke": " - SMOKE SCALE, says nothing about the method",
    "cpu": " - CPU scale, small networks",
    "full": "",
}


def _replaced(group: Sequence[Line]) -> str:
    """Return on what the lines of a panel were really run, where that is not what the panel is named after."""
    named = dict.fromkeys(text for line in group for text in line.differs if text.startswith(("data ", "eps ")))
    return f" (here: {', '.join(named)})" if named else ""


def _axes(count: int, title: str) -> list[Any]:
    """Return so many axes of a new picture, three in a row."""
    from matplotlib.figure import Figure as Picture  # here: it takes a second to import, and only figures need it

    columns = min(3, count)
    height = -(-count // columns)
    picture = Picture(figsize=(4.4 * columns, 3.4 * height + 0.4), layout="constrained")
    picture.suptitle(title, fontsize=9)
    axes = picture.subplots(height, columns, squeeze=False).flatten()
    for axis in axes[count:]:
        axis.remove()
    return list(axes[:count])


def _cells_of(experiment: Experiment, group: Sequence[Line], cells: Sequence[Cell]) -> list[Cell]:
    inside = {tuple(line.labels.values()) for line in group}
    return [cell for cell in cells if tuple(cell.labels.get(name, "") for name in experiment.lines) in inside]


def _by(items: Sequence[Any], names: Sequence[str], labels: Callable[[Any], Mapping[str, str]]) -> dict[tuple, list]:
    groups: dict[tuple, list] = {}
    for item in items:
        groups.setdefault(tuple(labels(item).get(name, "") for name in names), []).append(item)
    return groups


def _series(spec: Figure, experiment: Experiment, group: Sequence[Line]) -> dict[tuple, list[Line]]:
    """Return the lines by the labels that are neither the x axis nor the same throughout."""
    names = [name for name in experiment.lines if name not in (spec.x, *spec.panels)]
    names = [name for name in names if len({line.labels[name] for line in group}) > 1]
    return _by(group, names, lambda line: line.labels)


def _lines(axis, spec: Figure, experiment: Experiment, group: Sequence[Line]) -> None:
    """Columns over a label that is a number, one curve for each column and series."""
    for number, (key, series) in enumerate(_series(spec, experiment, group).items()):
        for name, style in zip(spec.y, ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 3))), strict=False):
            points = sorted(
                (float(line.labels[spec.x]), line.values[name].ours, line.values[name].deviation or 0.0)
                for line in series
                if line.values[name].ours is not None
            )
            if points:
                x, y, error = zip(*points, strict=True)
                label = ", ".join([*key, name])
                marker = _MARKERS[number % len(_MARKERS)]
                axis.errorbar(x, y, error, linestyle=style, marker=marker, ms=3, lw=1, label=label)
    axis.set(xlabel=spec.x, ylabel=spec.ylabel, xscale="log" if spec.log else "linear")


def _radii(axis, spec: Figure, experiment: Experiment, group: Sequence[Line]) -> None:
    """Columns over the radius that their names end in ("verified 0.1"), one curve for each line of the table."""
    for number, (key, (line, *_)) in enumerate(_series(spec, experiment, group).items()):
        for kind, style in zip(spec.y, ("-", "--", ":"), strict=False):
            named = {name: value.ours for name, value in line.values.items() if name.rpartition(" ")[0] == kind}
            points = [(float(name.rpartition(" ")[2]), ours) for name, ours in named.items() if ours is not None]
            if points:
                marker = _MARKERS[number % len(_MARKERS)]
                axis.plot(
                    *zip(*points, strict=True), linestyle=style, marker=marker, ms=3, label=", ".join([*key, kind])
                )
    axis.set(xlabel="eps of the test", ylabel=spec.ylabel)


def _scatter(axis, spec: Figure, experiment: Experiment, group: Sequence[Line]) -> None:
    """One column against another, one kind of point for each method."""
    for number, (key, series) in enumerate(_by(group, ("method",), lambda line: line.labels).items()):
        points = [(line.values[spec.x].ours, line.values[spec.y[0]].ours) for line in series]
        points = [point for point in points if None not in point]
        if points:
            marker = _MARKERS[number % len(_MARKERS)]
            axis.plot(*zip(*points, strict=True), marker, ms=4, label=", ".join(key))
    axis.set(xlabel=f"{spec.x} (%)", ylabel=f"{spec.y[0]} (%)")


def _ranges(axis, spec: Figure, experiment: Experiment, group: Sequence[Line]) -> None:
    """For each value of a label and each series: the last column as a point, the first two as the ends of a bar."""
    low, high, middle = spec.y
    series = _series(spec, experiment, group)
    places = {value: place for place, value in enumerate(dict.fromkeys(line.labels[spec.x] for line in group))}
    for number, (key, mine) in enumerate(series.items()):
        shift = (number + 1) / (len(series) + 1) - 0.5
        shown = [line for line in mine if line.values[middle].ours is not None]
        x = [places[line.labels[spec.x]] + shift for line in shown]
        y = [line.values[middle].ours for line in shown]
        ends = [[abs(line.values[middle].ours - line.values[end].ours) for line in shown] for end in (low, high)]
        axis.errorbar(x, y, ends, fmt=_MARKERS[number % len(_MARKERS)], ms=4, lw=1, label=", ".join(key))
    axis.set(xlabel=spec.x, ylabel=spec.ylabel)
    axis.set_xticks(range(len(places)), list(places))


def _bars(axis, spec: Figure, experiment: Experiment, group: Sequence[Line]) -> None:
    """For each value of a label one bar for each series and column."""
    places = {value: place for place, value in enumerate(dict.fromkeys(line.labels[spec.x] for line in group))}
    bars = [(key, mine, name) for key, mine in _series(spec, experiment, group).items() for name in spec.y]
    width = 0.8 / len(bars)
    for number, (key, mine, name) in enumerate(bars):
        shown = [line for line in mine if line.values[name].ours is not None]
        x = [places[line.labels[spec.x]] + (number + 0.5) * width - 0.4 for line in shown]
        error = [line.values[name].deviation or 0.0 for line in shown]
        axis.bar(x, [line.values[name].ours for line in shown], width, yerr=error, label=", ".join([*key, name]))
    axis.set(xlabel=spec.x, ylabel=spec.ylabel)
    axis.set_xticks(range(len(places)), list(places))


def _epochs(axis, spec: Figure, cells: Sequence[Cell], rows: Mapping[Identity, Row]) -> None:
    """What was observed after each epoch, one curve for each cell."""
    for cell in cells:
        row = found(cell, rows)
        for name in spec.y if row is not None else ():
            points = [(one["epoch"], one[name]) for one in row["epochs_observed"] if one.get(name) is not None]
            if points:
                label = f"{name}, {cell.labels['method']}, seed {cell.seed}"
                axis.plot(*zip(*points, strict=True), marker=".", lw=1, label=label)
    axis.set(xlabel="epoch", ylabel=spec.ylabel)


_KINDS: dict[str, Callable[..., None]] = {
    "lines": _lines,
    "radii": _radii,
    "scatter": _scatter,
    "ranges": _ranges,
    "bars": _bars,
}
