"""What a reader sees of a picture: whole titles, named values, one look for a series, one quantity on an axis."""

import itertools
from pathlib import Path

import pytest
from experimenting import CONFIG, PAPERS, cells_of, experiment_of, full_row, made_up, write

from expressive_losses.errors import UserError
from expressive_losses.experiments import grid
from expressive_losses.experiments.figures import draw, drawn
from expressive_losses.experiments.rows import by_command
from expressive_losses.experiments.spec import SCALES, load
from expressive_losses.experiments.table import lines

FIGURES = [path for path in PAPERS if experiment_of(path).figure]


def axes_of(experiment, cells, scale="smoke"):
    rows = by_command([full_row(experiment, cell, number) for number, cell in enumerate(cells) if cell.runs])
    return drawn(experiment, scale, lines(experiment, cells, rows), cells, rows)


def made(folder: Path, **figure):
    """A small figure over alpha, one panel for each data set and radius."""
    entries = [
        {"config": "small.yaml", "set": {"eps.target": eps}, "labels": {"method": method}, "axes": {"method.alpha": a}}
        for eps, method, a in (("0.1", "A", [0.1, 0.5]), ("0.2", "B", [0.1]), ("0.2", "A", [0.5]))
    ]
    figure = {"x": "alpha", "y": ["natural"], "panels": ["eps"], **figure}
    experiment = load(write(folder, entries=entries, lines=["eps", "method", "alpha"], figure=figure))
    return axes_of(experiment, grid.cells(experiment, "full"), "full")


def looks(axes) -> dict[str, set]:
    """By label: the colours and markers that its curves have."""
    found: dict[str, set] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            line = handle[0] if isinstance(handle, tuple) else handle
            found.setdefault(label, set()).add((line.get_color(), line.get_marker()))
    return found


def test_a_panel_is_called_by_its_labels_and_a_series_by_its_own(tmp_path):
    axes = made(tmp_path)
    assert [axis.get_title() for axis in axes] == ["eps 0.1", "eps 0.2"]
    assert set(looks(axes)) == {"A", "B"}


def test_a_series_looks_the_same_in_all_panels_and_no_two_are_alike(tmp_path):
    """B comes first in the second panel, and takes nothing from A."""
    found = looks(made(tmp_path))
    assert all(len(some) == 1 for some in found.values())
    assert len({look for some in found.values() for look in some}) == 2


def test_panels_of_one_quantity_have_the_same_axes(tmp_path):
    first, second = made(tmp_path)
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()


@pytest.mark.parametrize("kind", ["ranges", "bars"])
def test_a_series_has_the_same_place_in_all_panels(tmp_path, kind):
    """In the second panel B comes first in the table: it stays on the right of its value, and last in the legend."""
    y = ["natural"] * 3 if kind == "ranges" else ["natural"]
    first, second = made(tmp_path, kind=kind, y=y)
    places = [
        {label: _x(handle) for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        for axis in (first, second)
    ]
    of_a, of_b = (places[0]["A"][0], places[1]["A"][0]), places[1]["B"][0]
    assert of_a[0] % 1 == pytest.approx(of_a[1] % 1), "A is left of its value in both"
    assert of_b % 1 != pytest.approx(of_a[1] % 1)
    assert list(places[1]) == ["A", "B"]


def test_a_bar_of_nothing_says_so(tmp_path):
    """An accuracy of 0 that was measured is told from one that was not."""
    columns = {"natural": {"figure": "verify.ibp.natural"}}
    figure = {"kind": "bars", "x": "alpha", "y": ["natural"]}
    experiment = load(write(tmp_path, columns=columns, figure=figure))
    cells = grid.cells(experiment, "smoke")
    rows = by_command([made_up(cells[0], 0.0)])
    (axis,) = drawn(experiment, "smoke", lines(experiment, cells, rows), cells, rows)
    assert [text.get_text() for text in axis.texts] == ["0"]


def _x(handle) -> list[float]:
    """The middle of each bar, or the place of each point."""
    if hasattr(handle, "patches"):
        return [bar.get_x() + bar.get_width() / 2 for bar in handle.patches]
    return list(handle.lines[0].get_xdata())


def test_losses_have_a_logarithmic_axis_where_they_are_of_many_magnitudes(tmp_path):
    assert {axis.get_yscale() for axis in made(tmp_path)} == {"linear"}
    (path,) = [path for path in FIGURES if (path.parent.name, path.stem) == ("expressive_losses", "figure3")]
    assert {axis.get_yscale() for axis in axes_of(experiment_of(path), cells_of(path, "smoke"))} == {"log"}


def test_a_picture_of_rows_that_are_gone_is_removed(tmp_path):
    old = tmp_path / "figure.png"
    old.write_bytes(b"of former rows")
    experiment, cells = experiment_of(FIGURES[0]), cells_of(FIGURES[0], "smoke")
    assert not draw(experiment, "smoke", lines(experiment, cells, {}), cells, {}, old)
    assert not old.exists()


DRAWN = [(path, scale) for path in FIGURES for scale in SCALES if any(cell.runs for cell in cells_of(path, scale))]


@pytest.mark.parametrize(
    "path, scale", DRAWN, ids=[f"{path.parent.name}/{path.stem}, {scale}" for path, scale in DRAWN]
)
def test_titles_lie_within_the_picture_and_apart(path, scale):
    axes = axes_of(experiment_of(path), cells_of(path, scale), scale)
    picture = axes[0].figure
    picture.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (picture._suptitle, *(axis.title for axis in axes))]
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= picture.bbox.width
        assert box.y0 >= 0 and box.y1 <= picture.bbox.height
    assert not any(box.overlaps(other) for box, other in itertools.combinations(boxes, 2) if box.width and other.width)


def test_two_quantities_have_two_axes():
    (path,) = [path for path in FIGURES if path.stem == "figure1"]
    norm, verified = axes_of(experiment_of(path), cells_of(path, "smoke"))
    assert (norm.get_ylabel(), verified.get_ylabel()) == ("norm of the second convolution", "% verified by IBP")
    assert set(looks([norm, verified])) == {"crown_ibp", "ibp"}
    assert norm.get_title() == "norm of the second convolution (here: data digits)"
    assert verified.get_title() == "% verified by IBP (here: data digits)"


def test_one_run_has_a_point_without_a_bar(tmp_path):
    columns = {
        name: {"figure": "verify.ibp.natural", "statistic": kind}
        for name, kind in (("best", "max"), ("middle", "median"), ("worst", "min"))
    }
    figure = {"kind": "ranges", "x": "alpha", "y": ["worst", "best", "middle"]}
    experiment = load(write(tmp_path, CONFIG, columns=columns, figure=figure))
    cells = grid.cells(experiment, "full")[:1]
    (axis,) = axes_of(experiment, cells, "full")
    (container,) = axis.containers
    assert container.lines[0].get_ydata() == [90.0]
    assert [tuple(map(float, ends[:, 1])) for ends in container.lines[2][0].get_segments()] == [(90.0, 90.0)]


def test_labels_of_other_columns_are_refused(tmp_path):
    figure = {"x": "alpha", "y": ["natural", "verified"], "ylabel": {"natural": "%"}}
    with pytest.raises(UserError, match="ylabel: expected one for each of natural, verified, got natural"):
        load(write(tmp_path, figure=figure))
