"""The runner of tables and figures: grids, skipping, resuming, shards, and what tables print."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from expressive_losses.cli.train import overrides, train, train_parser
from expressive_losses.cli.verify import verify
from expressive_losses.config import load as load_config
from expressive_losses.errors import UserError
from expressive_losses.experiments import grid, render, runner
from expressive_losses.experiments.adopt import adopt
from expressive_losses.experiments.cli import CellsFailed, main
from expressive_losses.experiments.execute import execute
from expressive_losses.experiments.figures import draw, drawn
from expressive_losses.experiments.overview import BEGIN, END, overview
from expressive_losses.experiments.question import question
from expressive_losses.experiments.report import page, rows_file
from expressive_losses.experiments.rows import by_command, collect
from expressive_losses.experiments.spec import SCALES, load
from expressive_losses.experiments.table import lines, pick
from expressive_losses.locking import FolderLock

ROOT = Path(__file__).parent.parent
PAPERS = sorted((ROOT / "scripts").glob("*/[tf]*.yaml"))  # table, figure; base and sweeps are none
RECIPES = sorted(path for path in (ROOT / "scripts" / "recipes").glob("*.yaml") if path.stem != "base")
SCRIPTS = PAPERS + RECIPES
CONFIG = {"method": {"name": "mtl_ibp", "alpha": 0.2}, "data": {"name": "digits"}, "eps": {"target": "0.05"}}
SMALL = {"model": {"name": "cnn_tiny", "width": 2, "hidden": 4}, "training.epochs": 1, "eps.schedule.length": 0.5}
EXPERIMENT = {
    "title": "a table",
    "verify": {"ibp": {"bound": "ibp", "first": 8}},
    "columns": {"natural": {"figure": "verify.ibp.natural", "published": "natural"}},
    "lines": ["method", "alpha"],
    "entries": [{"config": "small.yaml", "labels": {"method": "MTL"}, "axes": {"method.alpha": [0.1, 0.5]}}],
    "scales": {"smoke": {"set": SMALL}},
}


def write(folder: Path, config=CONFIG, **changes) -> Path:
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    (folder / "table.yaml").write_text(yaml.safe_dump({**EXPERIMENT, **changes}))
    return folder / "table.yaml"


def run(path: Path, *more: str) -> None:
    main(["run", str(path), "--runs", str(path.parent / "runs"), "--device", "cpu", *more])


def rows_of(path: Path) -> list[dict]:
    file = path.parent / "runs" / "results" / "smoke" / path.parent.name / "table.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@cache
def experiment_of(path: Path):
    return load(path)


@cache
def cells_of(path: Path, scale: str) -> list[grid.Cell]:
    return grid.cells(experiment_of(path), scale)


def made_up(cell: grid.Cell, natural: float) -> dict:
    """A row as the runner would write it."""
    first, *rest = cell.commands
    percent = {kind: {"percent": natural} for kind in ("natural", "adversarial", "verified")}
    verified = {name: {"images": 8, **percent, "decided_by": {"ibp": {"verified": 2}}} for name in cell.verifications}
    return {"command": first, "then": rest, "seed": cell.seed, "images": 360, "verify": verified}


def test_the_grid_is_the_product_of_axes_and_seeds(tmp_path):
    experiment = load(write(tmp_path))
    cells = grid.cells(experiment, "smoke", [1, 2])
    assert [(cell.labels["alpha"], cell.seed) for cell in cells] == [("0.1", 1), ("0.1", 2), ("0.5", 1), ("0.5", 2)]
    assert [cell.resolved.method.alpha for cell in cells] == [0.1, 0.1, 0.5, 0.5]
    assert {cell.resolved.training.epochs for cell in cells} == {1}
    assert {cell.paper.training.epochs for cell in cells} == {60}, "the paper's setting stays as it is"
    assert len({cell.key for cell in cells}) == 4


def test_a_scale_replaces_after_the_entry_and_an_axis_after_both(tmp_path):
    entry = {"config": "small.yaml", "set": {"eps.schedule.length": 7}, "at": {"smoke": {"eps.schedule.mid": 0.5}}}
    change = {"eps.schedule": {"name": "smoothed", "length": 3}}
    experiment = load(write(tmp_path, entries=[entry], scales={"smoke": {"set": change}}))
    schedule = grid.cells(experiment, "smoke")[0].resolved.eps.schedule
    assert (schedule.length, schedule.mid) == (3, 0.5)
    assert grid.cells(experiment, "full")[0].resolved.eps.schedule.length == 7
    entry = {"config": "small.yaml", "set": {"training.epochs": 9}, "axes": {"training.epochs": [2, 3]}}
    experiment = load(write(tmp_path, entries=[entry]))
    assert [cell.resolved.training.epochs for cell in grid.cells(experiment, "smoke")] == [2, 3]


def test_radii_of_the_test_share_a_network_and_have_their_published_figures(tmp_path):
    paper = {"natural": 90, "others": {"0.1": {"natural": 80}}}
    path = write(tmp_path, {**CONFIG, "paper": paper}, entries=[{"config": "small.yaml", "tested": ["0.1", "0.05"]}])
    other, own = grid.cells(load(path), "smoke")
    assert other.key == own.key
    assert (other.published["natural"], own.published["natural"]) == (80, 90)
    assert "--eps 0.1" in other.commands[1]


def test_figures_of_a_config_are_not_those_of_its_variants(tmp_path):
    entries = [{"config": "small.yaml"}, {"config": "small.yaml", "set": {"training.l1": 1e-5}}]
    path = write(tmp_path, {**CONFIG, "paper": {"natural": 90}}, entries=entries)
    assert [cell.published for cell in grid.cells(load(path), "full")] == [{"natural": 90}, None]


def test_shards_partition_the_grid_and_keep_equal_networks_together(tmp_path):
    entries = [{"config": "small.yaml", "tested": ["0.1", "0.2"], "axes": {"method.alpha": [0.1, 0.2, 0.3]}}]
    cells = grid.cells(load(write(tmp_path, entries=entries)), "smoke", [1, 2])
    parts = [grid.shard(cells, index, 4) for index in range(4)]
    assert sorted(map(id, cells)) == sorted(id(cell) for part in parts for cell in part)
    keys = [{cell.key for cell in part} for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 6


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


def test_the_printed_command_trains_the_same(tmp_path):
    cell = grid.cells(load(write(tmp_path)), "smoke")[0]
    options = train_parser().parse_args(cell.train_arguments)
    assert load_config(options.config, overrides(options)) == cell.resolved


def test_a_run_trains_verifies_and_renders_and_a_second_has_nothing_to_do(tmp_path, capsys):
    path = write(tmp_path)
    run(path, "--seeds", "1")
    assert "2 done, 0 there before, 0 failed" in capsys.readouterr().out
    rows = rows_of(path)
    assert [row["seed"] for row in rows] == [1, 1]
    for row in rows:
        assert row["command"].startswith("python train.py --config") and row["then"][0].startswith("python verify.py")
        assert {"git", "device", "time", "seconds", "labels"} <= set(row)
        assert row["verify"]["ibp"]["images"] == 8
    text = (tmp_path / "runs" / "results" / "smoke" / tmp_path.name / "table.md").read_text()
    assert "SMOKE SCALE" in text and "1 epochs" in text
    run(path, "--seeds", "1")
    assert "0 done, 2 there before, 0 failed" in capsys.readouterr().out
    assert rows_of(path) == rows


def test_a_failed_cell_is_reported_and_the_others_go_on(tmp_path, capsys):
    bad = {"config": "small.yaml", "labels": {"method": "bad"}, "set": {"data": "mnist"}}
    path = write(tmp_path, entries=[bad, *EXPERIMENT["entries"]])
    with pytest.raises(CellsFailed, match="bad"):
        run(path, "--data-dir", str(tmp_path / "nowhere"))
    assert "2 done, 0 there before, 1 failed" in capsys.readouterr().out
    assert len(rows_of(path)) == 2


def test_a_runner_goes_on_in_the_middle_of_a_cell(tmp_path, capsys):
    """Killed between two checkpoints (campaigns/crash.py does so by SIGKILL): the epochs before are kept."""
    path = write(
        tmp_path, entries=[{"config": "small.yaml"}], scales={"smoke": {"set": {**SMALL, "training.epochs": 3}}}
    )
    (cell,) = grid.cells(load(path), "smoke")

    def kill(trainer) -> None:
        if trainer.step == 2 * trainer.steps_per_epoch - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(cell, tmp_path / "runs" / "cells", torch.device("cpu"), None, kill)
    metrics = tmp_path / "runs" / "cells" / cell.key / "run" / "metrics.jsonl"
    before = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(before) == 1
    run(path)
    after = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(after) == 3
    assert after[0] == before[0], "kept, with its seconds: not trained again"
    assert "1 done" in capsys.readouterr().out


def test_the_row_of_a_cell_is_written_when_the_cell_is_done(tmp_path, monkeypatch):
    path = write(tmp_path)
    done = []

    def attempt(job):
        if done:
            raise KeyboardInterrupt
        done.append(execute(job.cell, job.root, torch.device("cpu"), job.data_root))
        return runner.Result(job.cell, "done")

    monkeypatch.setattr(runner, "_attempt", attempt)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert [row["labels"]["alpha"] for row in rows_of(path)] == ["0.1"]


def test_a_cell_of_another_runner_is_left_alone_and_waited_for(tmp_path, capsys):
    path = write(tmp_path)
    taken = grid.cells(load(path), "smoke")[0]
    folder = tmp_path / "runs" / "cells" / taken.key
    folder.mkdir(parents=True)
    lock = FolderLock(folder)
    other = threading.Thread(target=run, args=(path,))
    other.start()
    while not list((tmp_path / "runs" / "cells").glob("*/verify-*/summary.json")):
        time.sleep(0.05)  # the other cell is done first
    assert not (folder / "run").exists()
    lock.release()
    other.join()
    assert "2 done, 0 there before, 0 failed" in capsys.readouterr().out


def test_two_processes_share_the_work(tmp_path, capsys):
    path = write(tmp_path)
    run(path, "--jobs", "2")
    assert "2 done, 0 there before, 0 failed" in capsys.readouterr().out
    assert [row["labels"]["alpha"] for row in rows_of(path)] == ["0.1", "0.5"]


def test_shards_fill_one_table(tmp_path):
    path = write(tmp_path)
    for index in range(2):
        run(path, "--shard", f"{index}/2")
    assert len(rows_of(path)) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [(["--shard", "2/2"], "2/2"), (["--jobs", "0"], "at least 1"), (["--scale", "full", "--shard", "x"], "shard")],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run(write(tmp_path), *arguments)


def test_a_bad_file_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match="table.yaml.*verifi"):
        load(write(tmp_path, verifi={}))
    with pytest.raises(UserError, match="no config other.yaml"):
        grid.cells(load(write(tmp_path, entries=[{"config": "other.yaml"}])), "smoke")


def test_means_deviations_published_figures_and_what_was_not_run(tmp_path):
    entries = [{**EXPERIMENT["entries"][0], "published": {"natural": 90.0}}]
    path = write(tmp_path, entries=entries, verify={"ibp": {"bound": "ibp"}}, scales={})
    experiment = load(path)
    cells = grid.cells(experiment, "full", [1, 2])
    rows = by_command([made_up(c, natural) for c, natural in zip(cells[:2], (91.0, 94.0), strict=True)])
    first, second = lines(experiment, cells, rows)
    # mean of 91 and 94; deviation sqrt((1.5^2 + 1.5^2) / 1) = 2.1213
    assert (first.values["natural"].ours, first.values["natural"].difference) == (92.5, 2.5)
    assert second.values["natural"].ours is None and second.runs == 0
    text = render.markdown(experiment, "full", [first, second])
    assert "| MTL | 0.1 | 92.50 ± 2.12 | 90.00 | **+2.50** | 2 | 8 |\n" in text
    assert "| MTL | 0.5 | not run | 90.00 |  | 0 |  |\n" in text
    assert "1 of 2 lines were run" in text
    assert "MTL,0.1,full,92.5,2.121" in render.comma_separated(experiment, "full", [first, second])
    assert r"\textbf{+2.50}" in render.latex(experiment, "full", [first, second])
    assert r"92.50 $\pm$ 2.12" in render.latex(experiment, "full", [first, second])


def test_figures_of_another_setting_are_in_parentheses_and_say_what_differs(tmp_path):
    entries = [{**EXPERIMENT["entries"][0], "published": {"natural": 90.0}}]
    experiment = load(write(tmp_path, entries=entries))
    cells = grid.cells(experiment, "smoke")
    rows = by_command([made_up(cells[0], 50.0)])
    text = render.markdown(experiment, "smoke", lines(experiment, cells, rows))
    assert "| MTL | 0.1 | 50.00 | (90.00) |  | 1 | 8 | 1 epochs, a changed network |" in text
    assert "SMOKE SCALE" in text


def test_published_figures_of_another_data_set_are_left_out(tmp_path):
    entries = [{**EXPERIMENT["entries"][0], "published": {"natural": 90.0}}]
    experiment = load(write(tmp_path, {**CONFIG, "data": {"name": "mnist"}, "eps": {"target": "0.05"}}, entries=entries,
                            scales={"smoke": {"set": {**SMALL, "data": "digits"}}}))  # fmt: skip
    cells = grid.cells(experiment, "smoke")
    rows = by_command([made_up(cells[0], 50.0)])
    text = render.markdown(experiment, "smoke", lines(experiment, cells, rows))
    assert "90.00" not in text and "published |" not in text
    assert "| MTL | 0.1 | 50.00 | 1 | 8 | data digits, 1 epochs" in text
    assert "(runs data digits, 1 epochs" in grid.described(cells[0])
    assert "90.00" in render.markdown(experiment, "full", lines(experiment, grid.cells(experiment, "full"), {}))


def test_figures_of_different_numbers_of_images_say_so(tmp_path):
    columns = {
        "natural": {"figure": "natural"},
        "verified": {"figure": "verify.ibp.verified"},
        "by IBP": {"figure": "verify.ibp", "stage": "ibp"},
        "by CROWN": {"figure": "verify.ibp", "stage": "crown"},
    }
    experiment = load(write(tmp_path, columns=columns))
    cells = grid.cells(experiment, "smoke")
    rows = by_command([{**made_up(cells[0], 50.0), "natural": 70.0}])
    text = render.markdown(experiment, "smoke", lines(experiment, cells, rows))
    # by IBP: 2 of the 8 images; CROWN did not run
    assert "| not run | 25.00 (of 8) | 70.00 (of 360) | 50.00 (of 8) | 1 |  |" in text
    del columns["natural"]
    experiment = load(write(tmp_path, columns=columns))
    assert "| not run | 25.00 | 50.00 | 1 | 8 |" in render.markdown(experiment, "smoke", lines(experiment, cells, rows))


def test_a_scale_may_add_an_axis_and_an_entry_may_be_of_one_scale_only(tmp_path):
    entries = [{"config": "small.yaml"}, {"config": "small.yaml", "scales": ["full"], "set": {"training.l1": 1e-5}}]
    change = {"axes": {"model": ["cnn_tiny", "cnn_small"]}}
    path = write(tmp_path, entries=entries, scales={"smoke": change, "cpu": {**change, "only": {"data": ["mnist"]}}})
    assert [cell.resolved.model.name for cell in grid.cells(load(path), "smoke")] == ["cnn_tiny", "cnn_small"]
    assert [cell.resolved.training.l1 for cell in grid.cells(load(path), "full")] == [0, 1e-5]
    assert {cell.labels["network"] for cell in grid.cells(load(path), "cpu")} == {"cnn_tiny"}, "not run: the paper's"


def test_rows_may_be_in_a_file_of_their_own_and_those_of_runs_by_hand_are_found(tmp_path):
    path = write(tmp_path, rows={"smoke": "mine.jsonl"})
    experiment, file = load(path), tmp_path / "mine.jsonl"
    cell, other = grid.cells(experiment, "smoke")
    by_hand = {**made_up(cell, 77.0), "command": cell.commands[0].replace(" --seed 100", "") + " --quiet --resume"}
    del by_hand["then"]
    file.write_text(json.dumps(by_hand) + "\n" + json.dumps(made_up(other, 66.0)) + "\n")
    assert "| 77.00 |" in page(experiment, "smoke", tmp_path) and "| 66.00 |" in page(experiment, "smoke", tmp_path)
    asked = {name: {**one, **question(cell, name)} for name, one in by_hand["verify"].items()}
    file.write_text(json.dumps({**by_hand, "verify": asked}) + "\n")
    assert "| 77.00 |" in page(experiment, "smoke", tmp_path)
    for key, value in {"eps": "0.01", "first": 3, "dtype": "float64", "stages": [{"name": "clean"}]}.items():
        other_question = {name: {**one, key: value} for name, one in asked.items()}
        file.write_text(json.dumps({**by_hand, "verify": other_question}) + "\n")
        assert "77.00" not in page(experiment, "smoke", tmp_path), f"{key} is not what the table asks"
    for_eps = [{name: {**one, "eps": eps} for name, one in asked.items()} for eps in ("2/255", "8/255")]
    file.write_text("".join(json.dumps({**by_hand, "verify": one}) + "\n" for one in for_eps))
    assert collect([], tmp_path, file) == 2, "rows of two questions are two rows"
    file.write_text(json.dumps({**by_hand, "seed": 2}) + "\n")
    assert "77.00" not in page(experiment, "smoke", tmp_path), "another seed is another cell"
    assert collect([cell], tmp_path, file) == 1, "what is not here is kept"


def test_a_finished_run_becomes_a_cell_with_its_verifications(tmp_path, capsys):
    path = write(tmp_path, entries=[{"config": "small.yaml"}])
    (cell,) = grid.cells(load(path), "smoke")
    run_ = tmp_path / "by_hand"
    given = [word for text in cell.assignments for word in ("--set", text)]
    train(["--config", str(tmp_path / "small.yaml"), *given, "--out", str(run_), "--quiet", "--device", "cpu"])
    for eps in ("0.05", "0.1"):  # the second is no question of the table
        out = ["--out", str(run_ / f"verify-{eps}"), "--quiet", "--device", "cpu"]
        verify(["--model", str(run_), "--bound", "ibp", "--first", "8", "--eps", eps, *out])
    main(["adopt", str(path), "--runs", str(tmp_path / "runs"), "--from", str(run_)])
    assert "by_hand: network, verify-0.05\n" in capsys.readouterr().out
    (row,) = rows_of(path)
    assert row["natural"] == json.loads((run_ / "summary.json").read_text())["natural"]
    run(path)
    assert "0 done, 1 there before, 0 failed" in capsys.readouterr().out
    main(["adopt", str(path), "--runs", str(tmp_path / "runs"), "--from", str(run_)])
    assert "nothing new" in capsys.readouterr().out


def test_verifications_of_other_weights_are_not_taken(tmp_path):
    path = write(tmp_path, entries=[{"config": "small.yaml"}])
    cells = grid.cells(load(path), "smoke")
    run(path)
    (folder,) = (tmp_path / "runs" / "cells").iterdir()
    other = tmp_path / "other"
    shutil.copytree(folder / "run", other)
    shutil.move(next(folder.glob("verify-*")), other / "verify-mine")
    (other / "model.pt").write_bytes(b"other weights")
    assert adopt(other, cells, tmp_path / "runs" / "cells") == []
    shutil.copy2(folder / "run" / "model.pt", other)
    assert adopt(other, cells, tmp_path / "runs" / "cells") == ["verify-mine"]


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


def test_the_overview_counts_cells_and_shared_networks_once(tmp_path):
    """Two radii of one network: 10 s of training once, 1 s of verification each."""
    entries = [{"config": "small.yaml", "tested": ["0.1", "0.2"], "axes": {"method.alpha": [0.1, 0.2]}}]
    path = write(tmp_path, entries=entries)
    first, second = grid.cells(load(path), "smoke")[:4:2]
    file = tmp_path / "results" / "smoke" / tmp_path.name / "table.jsonl"
    file.parent.mkdir(parents=True)
    more = {"device": "CPU x2", "training_seconds": 10.0}
    rows = [{**made_up(cell, 50.0), **more} for cell in (first, second)]
    for row in rows:
        row["verify"]["ibp"]["seconds"] = 1.0
    assert rows[0]["command"] == rows[1]["command"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "2 of 4 cells](../results/smoke/" in overview([path], tmp_path / "results")
    assert "12 s (CPU x2) | not run (4 cells) |" in overview([path], tmp_path / "results")


@pytest.mark.slow
def test_sigterm_stops_all_processes_with_their_state_saved(tmp_path):
    change = {**SMALL, "training.epochs": 400, "training.evaluate_every": 400}
    path = write(tmp_path, scales={"smoke": {"set": change}})
    program = [sys.executable, "-m", "expressive_losses.experiments", "run", str(path), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*program, "--runs", str(tmp_path / "runs")], cwd=tmp_path, env=environment)
    while len(list(tmp_path.glob("runs/cells/*/run/checkpoint.pt"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    for cell in (tmp_path / "runs" / "cells").iterdir():
        FolderLock(cell / "run").release()  # nobody holds it any more
        assert not (cell / "run" / "summary.json").exists()


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


def full_row(experiment, cell: grid.Cell, number: int) -> dict:
    """A row with a number in every place that a column or a figure looks at."""
    row = made_up(cell, 90.0 - number)
    seen = dict.fromkeys(("ibp", *cell.observe), 1.0 + number)
    losses = dict.fromkeys(("standard", "adversarial", "own", "crown_or_ibp", "ibp"), 0.5)
    return {
        **row,
        "measures": {"losses": losses},
        "epochs_observed": [{"epoch": epoch, **seen} for epoch in (1, 2)],
    }


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
