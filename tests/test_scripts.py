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

from expressive_losses.cli.arguments import verify_parser
from expressive_losses.cli.verify import stage_options
from expressive_losses.experiments import grid
from expressive_losses.experiments.figures import draw, drawn
from expressive_losses.experiments.overview import BEGIN, END, overview
from expressive_losses.experiments.report import page, rows_file
from expressive_losses.experiments.rows import by_command, cells_of_page, found
from expressive_losses.experiments.spec import SCALES, load
from expressive_losses.experiments.table import Line, lines, pick
from expressive_losses.results import read_rows
from expressive_losses.verify import build_stages


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("scale", SCALES)
def test_every_script_has_a_grid_of_valid_configs(path, scale):
    experiment, cells = experiment_of(path), cells_of(path, scale)
    assert cells
    for cell in cells[:: max(1, len(cells) // 6)]:
        assert cell.resolved.training.seed == cell.seed
        for name, asked in cell.verifications.items():
            options = verify_parser().parse_args(["--model", "MODEL", *cell.verify_arguments(name)])
            assert (options.eps, options.first, options.split) == (asked.eps, asked.first, asked.split)
            run = build_stages(options.bound, stage_options(options.assignments))
            assert {stage.name: stage.spec() for stage in run} == asked.stages
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


@pytest.mark.parametrize("path, scale", committed(), ids=lambda value: getattr(value, "stem", value))
def test_every_committed_row_is_on_its_page(path, scale):
    """The row of a grid that was changed since would stay, and nobody would see it."""
    rows = by_command(read_rows(_rows(path, scale)))
    cells = [cell for cell in cells_of_page(load(path), scale, rows) if cell.runs]
    shown = {id(row) for cell in cells if (row := found(cell, rows)) is not None}
    assert not [row["command"] for row in rows.values() if id(row) not in shown]


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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_no_two_lines_of_a_page_are_the_same_network_and_question(path, scale):
    """At smoke scale all networks are the same tiny one; elsewhere a page would repeat itself under other names."""
    lines_of = {}
    for cell in cells_of(path, scale):
        if cell.runs:
            made = (cell.key, *map(cell.verify_folder, cell.verifications))
            lines_of.setdefault(made, set()).add(tuple(cell.labels.get(name) for name in experiment_of(path).lines))
    assert not [found for found in lines_of.values() if len(found) > 1]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_line_that_the_scale_does_not_run_has_no_rows(path):
    """Without what the scale replaces, its command may be that of a line that was run."""
    experiment, cells = experiment_of(path), cells_of(path, "cpu")
    rows = by_command([full_row(experiment, cell, number) for number, cell in enumerate(cells) if cell.runs])
    for line in lines(experiment, cells, rows):
        assert line.runs == line.cells, line.labels
        assert line.cells or all(value.ours is None for value in line.values.values()), line.labels


def at_full(*papers: str) -> list[grid.Cell]:
    return [cell for path in PAPERS if path.parent.name in papers for cell in cells_of(path, "full")]


def test_a_quoted_line_is_trained_as_its_published_figures_were():
    """CROWN-IBP and AdvIBP are quoted by other papers, CROWN-IBP at several kappas."""
    compared = 0
    for cell in at_full("adv_ibp", "expressive_losses"):
        theirs, own = cell.published or {}, cell.paper.paper
        if not {"crown_ibp", "adv_ibp"} & set(cell.config.parts) or own["natural"] is None:
            continue
        radius = cell.labels["eps"]
        own = own if radius == cell.paper.eps.target.text else own["others"][radius]
        shared = {"natural", "pgd", "verified"} & theirs.keys()
        assert {key: theirs[key] for key in shared} == {key: own[key] for key in shared}, cell.labels
        compared += bool(shared)
    assert compared > 30


def published_in(path: str, **labels: str) -> list[dict]:
    found = cells_of(ROOT / "scripts" / f"{path}.yaml", "full")
    return [cell.published for cell in found if labels.items() <= cell.labels.items()]


@pytest.mark.parametrize(
    "path, labels, figures",
    [
        ("adv_ibp/table4", {"eps": "0.2", "recipe": "crown_ibp_kappa_1_0.5", "network": "dm_small"}, (97.04, 93.89)),
        ("adv_ibp/table4", {"eps": "0.4", "recipe": "crown_ibp_kappa_0_0", "network": "dm_small"}, (96.22, 84.79)),
        ("adv_ibp/table2", {"eps": "2/255", "recipe": "crown_ibp_kappa_0_0", "network": "dm_large"}, (71.52, 53.97)),
        ("expressive_losses/table1", {"eps": "2/255", "method": "adv_ibp"}, (59.39, 48.34)),
        ("expressive_losses/table1", {"eps": "2/255", "method": "crown_ibp"}, (71.52, 53.97)),
        ("expressive_losses/table1", {"eps": "8/255", "method": "adv_ibp"}, (47.14, 33.43)),
        ("expressive_losses/table1", {"data": "imagenet64", "method": "ibp"}, (15.96, 6.13)),
        ("ibp/table2", {"method": "standard"}, (51.16, None)),
        ("ibp/table4", {"data": "mnist", "eps": "0.3", "method": "standard"}, (99.35, None)),
        ("ibp/table4", {"eps": "8/255", "method": "standard"}, (83.34, 0)),
    ],
)
def test_lines_of_the_papers(path, labels, figures):
    (published,) = published_in(path, **labels)
    assert (published["natural"], published.get("verified")) == figures


def test_a_line_that_table_1_quotes_says_of_whom_and_what_verified_it():
    quoted = [line for line in lines_of_table_1() if line.labels["network"] == "dm_large"]
    assert len(quoted) == 7
    for line in quoted:
        verifier = "CROWN-IBP" if (line.labels["method"], line.labels["eps"]) == ("crown_ibp", "2/255") else "IBP"
        assert f"verified by {verifier}" in line.notes and len(line.notes) >= 2, line.labels


def lines_of_table_1() -> list[Line]:
    path = ROOT / "scripts" / "expressive_losses" / "table1.yaml"
    return lines(experiment_of(path), cells_of(path, "full"), {})


def test_attacked_figures_of_standard_training_at_every_radius():
    attacked = [published["pgd"] for published in published_in("ibp/table4", data="mnist", method="standard")]
    assert attacked == pytest.approx([100 - error for error in (27.72, 99.57, 99.63, 99.64)])


def test_published_seconds_of_training():
    assert [one["seconds"] for one in published_in("expressive_losses/table2", method="cc_ibp 0.01")] == [10800, 17700]
    (crown,) = published_in("expressive_losses/table1", eps="0.3", method="crown_ibp")
    assert crown["seconds"] == 5580


def test_the_attack_of_the_paper_on_ibp():
    """Training: steps of 0.1 in pixel units, whatever the radius. Test: 200 steps, 10 restarts (figure 3 too)."""
    steps = set()
    for cell in at_full("ibp"):
        if cell.resolved.attack.name == "adam_pgd":
            eps = cell.resolved.eps
            steps.add(round(cell.resolved.attack.step_size * float(eps.target) * eps.train_multiplier, 4))
    assert steps == {0.1}
    for cell in cells_of(ROOT / "scripts" / "ibp" / "figure3.yaml", "full"):
        for asked in cell.verifications.values():
            assert (asked.options["pgd.steps"], asked.options["pgd.restarts"]) == (200, 10)


def test_networks_of_adv_ibp_have_both_warm_ups():
    cells = [cell for cell in at_full("adv_ibp") if "adv" in cell.resolved.method.name]
    assert cells
    for cell in cells:
        ramp = cell.resolved.eps.schedule
        assert 0 < ramp.attack_warmup < ramp.warmup, cell.labels


def test_ramps_of_figure_3_at_cpu_scale_are_the_same_share_of_the_run():
    cells = [cell for cell in cells_of(ROOT / "scripts" / "crown_ibp" / "figure3.yaml", "cpu") if cell.runs]
    lengths = {cell.labels["length"]: cell.resolved.eps.schedule.length for cell in cells}
    assert lengths == pytest.approx({"10": 0.8, "15": 1.2, "30": 2.4, "60": 4.8})
    for cell in cells:
        length = f"{cell.resolved.eps.schedule.length:g}"
        assert f"smoothed ramp over {length} epochs without warm-up" in cell.replaced(())
