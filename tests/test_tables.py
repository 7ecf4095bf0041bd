"""What tables say: means, published figures, other settings, rows from elsewhere, the overview."""

import json
import shutil

from experimenting import (
    CONFIG,
    EXPERIMENT,
    ROOT,
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
from expressive_losses.experiments.report import page, rows_file
from expressive_losses.experiments.rows import by_command, cells_of_page, collect, found
from expressive_losses.experiments.spec import load
from expressive_losses.experiments.table import lines
from expressive_losses.results import read_rows

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


def test_statistics_over_the_runs_of_a_line(tmp_path):
    """Quartiles as the paper on IBP has them: 0.25 and 0.75 of the way through the sorted figures."""
    figure = {"figure": "verify.ibp.natural"}
    named = ("median", "lower quartile", "upper quartile", "min", "max")
    experiment = load(write(tmp_path, columns={name: {**figure, "statistic": name} for name in named}))
    cells = grid.cells(experiment, "full", [1, 2, 3, 4, 5])[:5]
    rows = by_command([made_up(cell, natural) for cell, natural in zip(cells, (90, 50, 60, 70, 80), strict=True)])
    (line,) = lines(experiment, cells, rows)
    assert [line.values[name].ours for name in named] == [70, 60, 80, 50, 90]
    (line,) = lines(experiment, cells[:1], rows)
    assert {name: value.ours for name, value in line.values.items()} == {**dict.fromkeys(named), "median": 90}


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


def test_all_lines_of_a_scale_are_named_in_one_way(tmp_path):
    """Also those that were not run yet: "0.1 (for 0.05)", as the others."""
    scales = {"smoke": {"set": {**SMALL, "eps.target": "0.1"}}}
    experiment = load(write(tmp_path, lines=["eps", "alpha"], scales=scales))
    cells = grid.cells(experiment, "smoke")
    named = lines(experiment, cells, by_command([made_up(cells[0], 50.0)]))
    assert [line.runs for line in named] == [1, 0]
    assert {line.shown["eps"] for line in named} == {"0.1 (for 0.05)"}


def test_the_attack_of_evaluation_counts_however_its_column_is_written(tmp_path):
    scales = {"smoke": {"set": {**SMALL, "test_attack": {"name": "pgd", "steps": 3, "step_size": 0.5}}}}
    for figure in ("adversarial", ["adversarial"]):
        experiment = load(write(tmp_path, columns={"PGD": {"figure": figure}}, scales=scales))
        cells = grid.cells(experiment, "smoke")
        (line, _) = lines(experiment, cells, by_command([{**made_up(cells[0], 50.0), "adversarial": 40.0}]))
        assert "test attack pgd (steps 3, step size 0.5)" in line.differs


def test_figures_of_different_numbers_of_images_say_so(tmp_path):
    columns = {
        "natural": {"figure": "natural"},
        "verified": {"figure": "verify.ibp.verified"},
        "by IBP": {"figure": "verify.ibp", "stage": "ibp"},
        "by CROWN": {"figure": "verify.ibp", "stage": "crown"},
    }
    both = {"verify": {"ibp": {"bound": "ibp,crown", "first": 8}}}
    (entry,) = EXPERIMENT["entries"]
    ways = {0.1: {"bound": "ibp"}, 0.5: {}}
    entries = [{**entry, "axes": {"method.alpha": [alpha]}, "verify": {"ibp": way}} for alpha, way in ways.items()]
    experiment = load(write(tmp_path, columns=columns, entries=entries, **both))
    cells = grid.cells(experiment, "smoke")
    rows = by_command([{**made_up(cells[0], 50.0), "natural": 70.0}])
    text = render.markdown(experiment, "smoke", lines(experiment, cells, rows))
    # by IBP: 2 of the 8 images; CROWN did not run
    assert "| not run | 25.00 (of 8) | 70.00 (of 360) | 50.00 (of 8) | 1 | " in text
    del columns["natural"]
    experiment = load(write(tmp_path, columns=columns, entries=entries, **both))
    assert "| not run | 25.00 | 50.00 | 1 | 8 |" in render.markdown(experiment, "smoke", lines(experiment, cells, rows))


def test_a_scale_may_add_an_axis_and_an_entry_may_be_of_one_scale_only(tmp_path):
    entries = [{"config": "small.yaml"}, {"config": "small.yaml", "scales": ["full"], "set": {"training.l1": 1e-5}}]
    change = {"axes": {"model": ["cnn_tiny", "cnn_small"]}}
    path = write(tmp_path, entries=entries, scales={"smoke": change, "cpu": {**change, "only": {"data": []}}})
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
    assert found(cell, by_command([{**by_hand, "seed": 2}])) is None, "another seed is another cell"
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
    (folder / cells[0].verify_folder("ibp")).mkdir()
    (folder / cells[0].verify_folder("ibp") / "ledger.jsonl").write_text("hours of work, unfinished")
    assert adopt(other, cells, tmp_path / "runs" / "cells") == ["verify-mine"]
    assert [path.read_text() for path in folder.glob("former-*/*.jsonl")] == ["hours of work, unfinished"]


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
    other_seed = {**rows[0], "seed": 7, "command": rows[0]["command"].replace("--seed 100", "--seed 7")}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, other_seed]))
    assert "3 of 5 cells](../results/smoke/" in overview([path], tmp_path / "results"), "as the page has it"


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


def test_a_row_of_the_runner_is_of_what_its_verification_asked(tmp_path):
    """The same command, but a default of verification has changed since; what a row does not say counts as asked."""
    (cell, _) = grid.cells(load(write(tmp_path)), "smoke")
    row, asked = made_up(cell, 50.0), question(cell, "ibp")

    def is_found(said: dict) -> bool:
        return found(cell, by_command([{**row, "verify": {"ibp": {**row["verify"]["ibp"], **said}}}])) is not None

    clean, pgd, *rest = asked["stages"]
    assert is_found({}) and is_found(asked) and is_found({"eps": asked["eps"]})
    others = {"eps": "0.01", "first": 7, "dtype": "float64", "stages": [clean, {**pgd, "steps": 1}, *rest]}
    assert not any(is_found({**asked, key: value}) for key, value in others.items())
    old = {key: value for key, value in pgd.items() if key != "steps"}
    assert is_found({**asked, "stages": [clean, old, *rest]}), "an option that is new since has its default"
    assert not is_found({**asked, "stages": [clean, {**pgd, "gone": 1}, *rest]})
    assert not found(cell, by_command([{**row, "verify": {"other name": row["verify"]["ibp"]}}]))


def test_rows_are_found_from_any_working_folder(tmp_path, monkeypatch):
    """A config of a repository is named from its root; the committed rows are, and the commands are typed there."""
    experiment = load(ROOT / "scripts" / "expressive_losses" / "table3.yaml")
    monkeypatch.chdir(tmp_path)
    (first, *_) = grid.cells(experiment, "cpu")
    assert first.commands[0].startswith("python train.py --config configs/mnist_0.1/")
    assert found(first, by_command(read_rows(rows_file(experiment, "cpu", ROOT / "results"))))
    outside = grid.cells(load(write(tmp_path)), "smoke")[0]
    assert f"--config {tmp_path / 'small.yaml'} " in outside.commands[0]
    (tmp_path / ".git").write_text("a work tree")
    inside = grid.cells(load(write(tmp_path)), "smoke")[0]
    assert "--config small.yaml " in inside.commands[0]


def test_a_page_is_of_all_seeds_that_are_there(tmp_path, capsys):
    """Asking for one seed leaves the others on the page; what was run of a seed stays without asking for it."""
    path = write(tmp_path)
    experiment = load(path)
    file = tmp_path / "runs" / "results" / "smoke" / tmp_path.name / "table.jsonl"
    file.parent.mkdir(parents=True)
    rows = [made_up(grid.cells(experiment, "smoke", [seed])[0], 50.0 + seed) for seed in (1, 2, 100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counted = cells_of_page(experiment, "smoke", by_command(rows))
    assert sorted((cell.labels["alpha"], cell.seed) for cell in counted) == [
        ("0.1", 1),
        ("0.1", 2),
        ("0.1", 100),
        ("0.5", 100),
    ]
    for more in ([], ["--seeds", "7"]):
        main(["report", str(path), "--runs", str(tmp_path / "runs"), *more])
        # mean of 51, 52 and 150
        assert "| MTL | 0.1 | 84.33 ± 56.87 | 3 | 8 |" in file.with_suffix(".md").read_text()
    assert len(file.read_text().splitlines()) == 3


def test_the_rows_of_many_cells_are_found_in_time(tmp_path, monkeypatch):
    """Commands are put together once a cell, not once for each pair of a cell and a row."""
    calls = []
    text = grid._text
    monkeypatch.setattr(grid, "_text", lambda *arguments: calls.append(1) or text(*arguments))
    cells = grid.cells(load(write(tmp_path)), "smoke", range(20))
    rows = by_command([made_up(cell, 50.0) for cell in cells])
    assert all(found(cell, rows) for cell in cells for _ in range(3))
    assert len(calls) == 2 * len(cells), "one of training and one of verification"


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
    assert text.count(RAMP) == 1 and "in every line that was run: model width 2" in text
    assert "| MTL, 0.1 | natural 91.50 ± 0.71 (90.00 ± 0.5) | 2 |\n" in text
    assert "| MTL, 0.5 | natural 93.00 (90.00 ± 0.5) | 1 of 2 |\n" in text
    assert "full scale.\n\n| line | ours (published) | runs |\n|" in text
    assert "| MTL, 0.1 | natural 91.50 ± 0.71 (90.00 ± 0.5, **+1.50**) | 2 |\n" in text
    (tmp_path / "one").mkdir()
    assert "not run (1 cell)" in overview([write(tmp_path / "one", entries=[{"config": "small.yaml"}])], tmp_path)
