"""What tables say: means, published figures, other settings, rows from elsewhere, the overview."""

import json
import shutil

from experimenting import (
    CONFIG,
    EXPERIMENT,
    SMALL,
    made_up,
    rows_of,
    run,
    write,
)

from expressive_losses.cli.train import train
from expressive_losses.cli.verify import verify
from expressive_losses.experiments import grid, render
from expressive_losses.experiments.adopt import adopt
from expressive_losses.experiments.cli import main
from expressive_losses.experiments.overview import overview
from expressive_losses.experiments.question import question
from expressive_losses.experiments.report import page
from expressive_losses.experiments.rows import by_command, collect, found
from expressive_losses.experiments.spec import load
from expressive_losses.experiments.table import lines

RAMP = "smoothed ramp over 0.5 of the run without warm-up"
LIMIT = "10 s an image in branch-and-bound"


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
    assert "Run: 2 of 4 cells of this scale, in 1 of 2 lines. Seeds 1, 2." in text
    assert "MTL,0.1,full,92.5,2.121" in render.comma_separated(experiment, "full", [first, second])
    assert r"\textbf{+2.50}" in render.latex(experiment, "full", [first, second])
    assert r"92.50 $\pm$ 2.12" in render.latex(experiment, "full", [first, second])


def test_figures_of_another_setting_are_in_parentheses_and_say_what_differs(tmp_path):
    entries = [{**EXPERIMENT["entries"][0], "published": {"natural": 90.0}}]
    experiment = load(write(tmp_path, entries=entries))
    cells = grid.cells(experiment, "smoke")
    rows = by_command([made_up(cells[0], 50.0)])
    text = render.markdown(experiment, "smoke", lines(experiment, cells, rows))
    assert f"| MTL | 0.1 | 50.00 | (90.00) | 1 | 8 | model width 2, model hidden 4, {RAMP}, 1 epoch |" in text
    assert "SMOKE SCALE" in text


def test_what_all_lines_have_in_place_of_the_papers_stands_above_the_table(tmp_path):
    """Also what verifies: the full scale's own options count as the paper's."""
    verify = {"ibp": {"bound": "cascade", "first": 8}}
    scales = {
        "full": {"verify": {"options": {"bab.timeout": 1800}}},
        "cpu": {"set": SMALL, "verify": {"options": {"bab.timeout": 10, "mip.timeout": 3}}},
    }
    experiment = load(write(tmp_path, verify=verify, scales=scales))
    for scale, said in (("cpu", f"model width 2, model hidden 4, {RAMP}, 1 epoch, {LIMIT}."), ("full", None)):
        cells = grid.cells(experiment, scale)
        text = render.markdown(
            experiment, scale, lines(experiment, cells, by_command([made_up(c, 50.0) for c in cells]))
        )
        above = "In place of the paper's, in every line that was run: "
        assert (f"{above}{said}" in text) if said else (above not in text)
        assert "| MTL | 0.1 | 50.00 | 1 | 8 |\n" in text, "nothing is left for the last column"


def test_the_published_figures_of_a_radius_are_among_the_others(tmp_path):
    others = {"0.02": {"natural": 80.0}}
    entry = {
        "config": "small.yaml",
        "tested": ["0.02", "0.05", "0.07"],
        "published": {"natural": 90.0, "others": others},
    }
    found = [cell.published for cell in grid.cells(load(write(tmp_path, entries=[entry])), "full")]
    assert [(figures or {}).get("natural") for figures in found] == [80.0, 90.0, None]


def test_published_figures_of_another_data_set_are_left_out(tmp_path):
    entries = [{**EXPERIMENT["entries"][0], "published": {"natural": 90.0}}]
    experiment = load(write(tmp_path, {**CONFIG, "data": {"name": "mnist"}, "eps": {"target": "0.05"}}, entries=entries,
                            scales={"smoke": {"set": {**SMALL, "data": "digits"}}}))  # fmt: skip
    cells = grid.cells(experiment, "smoke")
    rows = by_command([made_up(cells[0], 50.0)])
    text = render.markdown(experiment, "smoke", lines(experiment, cells, rows))
    assert "90.00" not in text and "published |" not in text
    assert "| MTL | 0.1 | 50.00 | 1 | 8 | data digits, " in text and ", 1 epoch, " in text
    assert "(runs data digits, " in grid.described(cells[0])
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


def test_a_row_is_of_the_config_as_it_was(tmp_path):
    """The same command, but its config file has been edited: not run."""
    path = write(tmp_path)
    cell = grid.cells(load(path), "full")[0]
    row = {**made_up(cell, 50.0), "config": cell.resolved.fingerprint()}
    assert found(cell, by_command([row])) == row
    write(tmp_path, {**CONFIG, "training": {"l1": 0.1}})
    (edited, *_) = grid.cells(load(path), "full")
    assert edited.commands == cell.commands
    assert found(edited, by_command([row])) is None
    assert found(edited, by_command([made_up(cell, 50.0)])), "older rows do not say"


def test_the_overview_says_a_setting_once_and_counts_one_cell(tmp_path):
    entries = [{**EXPERIMENT["entries"][0], "published": {"natural": {"mean": 90.0, "deviation": 0.5}}}]
    scales = {"cpu": {"set": SMALL}, "full": {"axes": {"method.alpha": [0.1]}}, "smoke": {"only": {"alpha": ["0.1"]}}}
    path = write(tmp_path, entries=entries, scales=scales, verify={"ibp": {"bound": "ibp"}}, seeds=[1, 2])
    for scale, count in (("cpu", 3), ("full", 2)):
        file = tmp_path / "results" / scale / tmp_path.name / "table.jsonl"
        file.parent.mkdir(parents=True)
        cells = grid.cells(load(path), scale)[:count]
        rows = [{**made_up(cell, 91.0 + n), "device": "CPU", "training_seconds": 1.0} for n, cell in enumerate(cells)]
        for row in rows:
            row["verify"]["ibp"]["seconds"] = 1.0
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = overview([path], tmp_path / "results")
    assert text.count(RAMP) == 1 and "cpu scale. In place of the paper's, in every line: model width 2" in text
    assert "| MTL, 0.1 | natural 91.50 ± 0.71 (90.00 ± 0.5) | 2 |\n" in text
    assert "| MTL, 0.5 | natural 93.00 (90.00 ± 0.5) | 1 of 2 |\n" in text
    assert "full scale.\n\n| line | ours (published) | runs |\n|" in text
    assert "| MTL, 0.1 | natural 91.50 ± 0.71 (90.00 ± 0.5, **+1.50**) | 2 |\n" in text
    (tmp_path / "one").mkdir()
    assert "not run (1 cell)" in overview([write(tmp_path / "one", entries=[{"config": "small.yaml"}])], tmp_path)
