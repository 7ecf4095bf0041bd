"""The committed grids, rows and pages: every script of the papers, and what is rendered of it."""

import json
from pathlib import Path

import pytest
from experimenting import (
    PAPERS,
    RECIPES,
    ROOT,
    SCRIPTS,
    cells_of,
    experiment_of,
    full_row,
)

from expressive_losses.experiments import grid
from expressive_losses.experiments.figures import draw, drawn
from expressive_losses.experiments.overview import BEGIN, END, overview
from expressive_losses.experiments.report import page, rows_file
from expressive_losses.experiments.rows import by_command
from expressive_losses.experiments.spec import SCALES, load
from expressive_losses.experiments.table import lines, pick


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("scale", SCALES)
def test_every_script_has_a_grid_of_valid_configs(path, scale):
    experiment, cells = experiment_of(path), cells_of(path, scale)
    assert cells
    for cell in cells[:: max(1, len(cells) // 6)]:
        assert cell.resolved.training.seed == cell.seed
        arguments = [word for name in cell.verifications for word in cell.verify_arguments(name)]
        assert "--bound" in arguments or not cell.verifications
    assert experiment.figure is None or set(experiment.figure.panels) <= set(experiment.lines)
    assert path in RECIPES or path.with_suffix(".sh").exists()


def committed() -> list[tuple[Path, str]]:
    return [(path, scale) for path in SCRIPTS for scale in SCALES if _rows(path, scale).with_suffix(".md").exists()]


def _rows(path: Path, scale: str) -> Path:
    return rows_file(experiment_of(path), scale, ROOT / "results")


@pytest.mark.parametrize("path, scale", committed(), ids=lambda value: getattr(value, "stem", value))
def test_committed_pages_are_those_of_the_committed_rows(path, scale, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert _rows(path, scale).with_suffix(".md").read_text() == page(load(path), scale, ROOT / "results")
    for line in _rows(path, scale).read_text().splitlines():
        assert {"device", "time", "git", "command", "images", "seed"} <= set(json.loads(line))


def test_the_overview_is_that_of_the_committed_rows(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "reproduction.md").read_text()
    assert text.partition(BEGIN)[2].partition(END)[0] == overview(PAPERS, Path("results"))


FIGURES = [path for path in SCRIPTS if experiment_of(path).figure]


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_figure_is_drawn_with_a_curve_for_each_of_its_series(path, tmp_path):
    experiment, cells = experiment_of(path), cells_of(path, "smoke")
    rows = by_command([full_row(experiment, cell, number) for number, cell in enumerate(cells)])
    found = lines(experiment, cells, rows)
    assert all(value.ours is not None for line in found for value in line.values.values())
    axes = drawn(experiment, "smoke", found, cells, rows)
    assert axes and all(axis.get_lines() or axis.containers for axis in axes)
    assert draw(experiment, "smoke", found, cells, rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_nothing_is_drawn_of_nothing(tmp_path):
    experiment = load(FIGURES[0])
    cells = grid.cells(experiment, "smoke")
    assert not draw(experiment, "smoke", lines(experiment, cells, {}), cells, {}, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_column_and_line_of_a_script_leads_somewhere(path):
    experiment, cells = experiment_of(path), cells_of(path, "smoke")
    for name, column in experiment.columns.items():
        path_ = column.figure.split(".") if isinstance(column.figure, str) else column.figure
        if column.verification is not None:
            assert column.verification in experiment.verify, name
            assert column.stage or path_[2] in ("natural", "adversarial", "verified"), name
        else:
            assert path_[0] in ("natural", "adversarial", "ibp", "training_seconds", "measures"), name
        if column.published:
            assert any(pick(cell.published or {}, column.published) is not None for cell in cells), name
    for label in experiment.lines:
        assert any(cell.labels.get(label) for cell in cells), label
