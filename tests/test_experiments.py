"""The runner of tables and figures: grids, skipping, resuming, shards."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from experimenting import (
    CONFIG,
    EXPERIMENT,
    ROOT,
    SMALL,
    rows_of,
    run,
    write,
)

from expressive_losses.cli.common import choose_device
from expressive_losses.cli.train import overrides, train_parser
from expressive_losses.config import load as load_config
from expressive_losses.errors import UserError
from expressive_losses.experiments import cli, grid, runner
from expressive_losses.experiments.cli import CellsFailed, main
from expressive_losses.experiments.execute import execute
from expressive_losses.experiments.spec import load
from expressive_losses.locking import FolderLock


def test_the_grid_is_the_product_of_axes_and_seeds(tmp_path):
    experiment = load(write(tmp_path))
    cells = grid.cells(experiment, "smoke", [1, 2])
    assert [(cell.labels["alpha"], cell.seed) for cell in cells] == [("0.1", 1), ("0.1", 2), ("0.5", 1), ("0.5", 2)]
    assert [cell.resolved.method.alpha for cell in cells] == [0.1, 0.1, 0.5, 0.5]
    assert {cell.resolved.training.epochs for cell in cells} == {1}
    assert {cell.paper.training.epochs for cell in cells} == {60}, "the paper's setting stays as it is"
    assert len({cell.key for cell in cells}) == 4


def test_entries_inside_an_entry_share_what_it_says(tmp_path):
    """Depth first, what is inside over what is around it; a list may be there twice (by an anchor of YAML)."""
    pair = [{"labels": {"l1": "none"}}, {"set": {"training.l1": 1e-5}, "labels": {"l1": "some"}}]
    inner = [{"set": {"eps.target": "0.1"}, "entries": pair}, {"set": {"eps.target": "0.2"}, "entries": pair}]
    shared = {"config": "small.yaml", "labels": {"l1": "?", "method": "M"}, "axes": {"method.alpha": [0.3]}}
    flat = [
        {
            **shared,
            "labels": {"l1": name, "method": "M"},
            "set": {"eps.target": eps, **({"training.l1": 1e-5} if name == "some" else {})},
        }
        for eps in ("0.1", "0.2")
        for name in ("none", "some")
    ]
    nested = load(write(tmp_path, entries=[{**shared, "entries": inner}, {"config": "small.yaml"}]))
    assert nested.entries == load(write(tmp_path, entries=[*flat, {"config": "small.yaml"}])).entries
    assert [list(entry.set) for entry in nested.entries[:2]] == [["eps.target"], ["eps.target", "training.l1"]]


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"entries": [{"config": "x", "seed": 1}]}, r"unknown key 'entries\.0\.seed'"),
        ({"entries": [{"config": "x", "entries": [{}, {"axis": {}}]}]}, r"'entries\.1\.axis'; did you mean 'axes'"),
        (
            {"entries": [{"set": {}, "entries": {"config": "x"}}]},
            "entries: expected a list of entries, got {'config': 'x'}",
        ),
        ({"entries": [{"set": {}, "entries": []}]}, r"expected a list of entries, got \[\]"),
        ({"entries": ["small.yaml"]}, "entries: expected a mapping with 'config' or 'entries', got 'small.yaml'"),
        ({"verify": {"ibp": {"bounds": "ibp"}}}, r"'verify\.ibp\.bounds'; did you mean 'bound'"),
        ({"figure": {"y": ["natural"], "pannels": []}}, r"'figure\.pannels'; did you mean 'panels'"),
    ],
)
def test_a_mistake_in_an_experiment_file_is_named(tmp_path, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        load(write(tmp_path, **changes))


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


def test_an_entry_may_be_verified_in_its_own_way_at_one_scale(tmp_path):
    own = {"smoke": {"first": 5, "options": {"pgd.steps": 3}}}
    entries = [{"config": "small.yaml"}, {"config": "small.yaml", "set": {"training.seed": 2}, "verify_at": own}]
    asked = {"first": 6, "options": {"pgd.steps": 4, "pgd.restarts": 2}}
    experiment = load(write(tmp_path, entries=entries, scales={"smoke": {"verify": asked}}))
    found = [cell.verifications["ibp"] for cell in grid.cells(experiment, "smoke")]
    assert [(one.first, one.options["pgd.steps"], one.options["pgd.restarts"]) for one in found] == [
        (6, 4, 2),
        (5, 3, 2),
    ]
    assert [cell.verifications["ibp"].first for cell in grid.cells(experiment, "full")] == [8, 8]


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
    assert "SMOKE SCALE" in text and ", 1 epoch" in text
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


@pytest.mark.parametrize("bug, fails", [(False, False), (True, False), (False, True)])
def test_a_page_that_cannot_be_made_costs_no_other_and_no_summary(tmp_path, monkeypatch, capsys, bug, fails):
    paths = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        bad = {"config": "small.yaml", "labels": {"method": "bad"}, "set": {"data": "mnist"}}
        paths.append(write(tmp_path / name, entries=[{"config": "small.yaml"}, *([bad] if fails else [])]))
    where = ["--runs", str(tmp_path / "runs"), "--scale", "smoke"]
    results, report = tmp_path / "runs" / "results" / "smoke", cli.report

    def fails_at_the_first(experiment, *given):
        if experiment.name == "first/table":
            raise KeyError("a bug") if bug else UserError("no space")
        return report(experiment, *given)

    monkeypatch.setattr(cli, "report", fails_at_the_first)
    why = "first/table is not rendered: " + ("KeyError: 'a bug'" if bug else "no space")
    kind = CellsFailed if bug or fails else UserError
    with pytest.raises(kind, match=why) as raised:
        main(["run", *map(str, paths), *where, "--data-dir", str(tmp_path)])
    assert ("bad cnn_tiny small seed 100 and 1 more: data set 'mnist'" in str(raised.value)) is fails
    shown = capsys.readouterr()
    assert f"1 done, 1 there before, {2 * fails} failed" in shown.out
    assert ("Traceback" in shown.err) is bug
    assert (results / "second" / "table.md").exists() and not (results / "first" / "table.md").exists()
    (results / "second" / "table.md").unlink()
    with pytest.raises(CellsFailed if bug else UserError, match=why):
        main(["report", *map(str, paths), *where])
    assert (results / "second" / "table.md").exists()


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


def test_a_dry_run_lists_what_is_left(tmp_path, capsys):
    path = write(tmp_path)
    run(path, "--shard", "0/2")
    verified, trained = grid.cells(load(path), "smoke")
    capsys.readouterr()
    run(path, "--dry-run")
    shown = capsys.readouterr().out
    assert trained.key in shown and verified.key not in shown
    assert "1 cells, 1 networks to train; 1 cells are there" in shown
    shutil.rmtree(next((tmp_path / "runs" / "cells" / verified.key).glob("verify-*")))
    run(path, "--dry-run")
    assert "2 cells, 1 networks to train; 0 cells are there" in capsys.readouterr().out, "one is to be verified only"


def test_a_damaged_summary_is_named_and_made_again_without_it(tmp_path, capsys):
    path = write(tmp_path)
    run(path, "--shard", "0/2")
    before = rows_of(path)
    summary = next((tmp_path / "runs" / "cells").glob("*/run/summary.json"))
    summary.write_text('{"natural": 9')
    with pytest.raises(UserError, match=r"summary\.json: damaged; delete it"):
        run(path, "--shard", "0/2")
    summary.unlink()
    capsys.readouterr()
    run(path, "--shard", "0/2")
    assert "1 done, 0 there before, 0 failed" in capsys.readouterr().out
    figures = [{key: row[key] for key in ("natural", "ibp", "adversarial")} for row in (*before, *rows_of(path))]
    assert figures[0] == figures[1]


def test_seeds_are_whole_numbers_from_0(tmp_path):
    for text in ("-1", "1.5", "a"):
        with pytest.raises(UserError, match=f"--seeds {text}: expected whole numbers from 0"):
            run(write(tmp_path), "--seeds", text)


def test_shards_fill_one_table(tmp_path):
    path = write(tmp_path)
    for index in range(2):
        run(path, "--shard", f"{index}/2")
    assert len(rows_of(path)) == 2


def test_only_cells_without_a_row(tmp_path, capsys):
    """Rows of another machine, whose run folders are not here."""
    path = write(tmp_path)
    run(path)
    shutil.rmtree(tmp_path / "runs" / "cells")
    rows = tmp_path / "runs" / "results" / "smoke" / tmp_path.name / "table.jsonl"
    first = rows_of(path)[0]
    rows.write_text(json.dumps(first) + "\n")
    capsys.readouterr()
    run(path, "--missing")
    assert "1 done, 0 there before" in capsys.readouterr().out
    assert len(rows_of(path)) == 2
    assert rows_of(path)[0] == first
    run(path, "--missing")
    assert "0 done, 0 there before" in capsys.readouterr().out


def test_shards_of_what_is_missing_do_not_depend_on_what_is_there(tmp_path, capsys):
    """Machines of a table start at different times: whatever has a row by then, the shards cover the rest once."""
    path = write(tmp_path)

    def listed(shard: str) -> list[str]:
        capsys.readouterr()
        run(path, "--missing", "--dry-run", "--shard", shard)
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1] if not line.startswith(" ")]

    first, second = listed("0/2"), listed("1/2")
    assert len(first) == len(second) == 1
    run(path, "--shard", "0/2")
    assert (listed("0/2"), listed("1/2")) == ([], second)


def test_help_lists_the_commands(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ("run", "report", "sweep", "adopt")) and "not done yet" in shown


def test_every_process_of_the_runner_has_a_gpu_of_its_own(monkeypatch):
    """'auto' and 'cuda' are the current device, which the runner has set; torchrun's variable goes before it.

    What is chosen becomes the current one: NCCL and CUDA graphs ask for that.
    """
    current, zeros = [], torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device=None, **options: zeros(*sizes, **options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(getattr(device, "index", device)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    found = []
    for slot in range(3):
        slots = queue.Queue()
        slots.put(slot)
        runner._start(slots, 3)
        found += [choose_device("auto"), choose_device("cuda")]
    assert found == [torch.device("cuda", index) for index in (0, 0, 1, 1, 0, 0)]
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        assert choose_device(name) == torch.device("cuda", 1) and current.pop() == 1
    assert choose_device("cuda:0") == torch.device("cuda", 0) and current.pop() == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shard", "2/2"], "2/2"),
        (["--jobs", "0"], "at least 1"),
        (["--scale", "full", "--shard", "x"], "shard"),
        (["--scale", "ful"], "invalid choice: 'ful'"),
        (["--dry"], "unrecognized arguments: --dry; .* --help explains"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run(write(tmp_path), *arguments)


@pytest.mark.parametrize("option, before", [("--runs", True), ("--results", True), ("--results", False)])
@pytest.mark.parametrize("place", ["a file/x", "a file"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(tmp_path, capsys, option, before, place):
    """By ``run`` before it trains; by ``report``, ``adopt`` and ``polytope`` in one line too."""
    path, place = write(tmp_path), tmp_path / place
    (tmp_path / "a file").write_text("")
    if before:
        command = ["run", str(path), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    else:
        command = ["report", str(path)]
    with pytest.raises(UserError, match=f"{option}: cannot make the folder .*a file.*; choose another"):
        main([*command, option, str(place)])
    assert "done" not in capsys.readouterr().out and not list(tmp_path.glob("runs/cells/*"))


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: "results" not in str(path))
    with pytest.raises(UserError, match="--results: cannot write into the folder .*results"):
        run(write(tmp_path))


@pytest.mark.parametrize("command", ["adopt table.yaml --from run --runs file/x", "polytope --seeds 0 --results file"])
def test_other_commands_name_a_folder_that_cannot_be_written(tmp_path, monkeypatch, command):
    write(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot make the folder file"):
        main(command.split())


def test_a_document_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothere.md: cannot read the document: No such file"):
        main(["overview", str(write(tmp_path)), "--document", str(tmp_path / "nothere.md")])


def test_a_bad_file_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match="table.yaml.*verifi"):
        load(write(tmp_path, verifi={}))
    with pytest.raises(UserError, match="no config other.yaml"):
        grid.cells(load(write(tmp_path, entries=[{"config": "other.yaml"}])), "smoke")


@pytest.mark.slow
@pytest.mark.parametrize("sign, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_outlives_a_runner_that_is_stopped_or_killed(tmp_path, sign, code):
    change = {**SMALL, "training.epochs": 400, "training.evaluate_every": 400}
    path = write(tmp_path, scales={"smoke": {"set": change}})
    program = [sys.executable, "-m", "expressive_losses.experiments", "run", str(path), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    place = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE}
    process = subprocess.Popen([*program, "--runs", str(tmp_path / "runs")], **place)
    while len(list(tmp_path.glob("runs/cells/*/run/checkpoint.pt"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(sign)
    process.communicate(timeout=60)  # the output ends with the last process that could write to it
    assert process.returncode == code
    for cell in (tmp_path / "runs" / "cells").iterdir():
        assert not (cell / "run" / "summary.json").exists()
