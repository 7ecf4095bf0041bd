"""The runner of tables and figures: skipping, resuming, shards, processes."""

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
from experimenting import EXPERIMENT, ROOT, SMALL, rows_of, run, write

from expressive_losses.cli.common import choose_device
from expressive_losses.errors import UserError
from expressive_losses.experiments import cli, grid, runner
from expressive_losses.experiments.cli import CellsFailed, main
from expressive_losses.experiments.execute import execute
from expressive_losses.experiments.spec import load
from expressive_losses.locking import FolderLock


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
