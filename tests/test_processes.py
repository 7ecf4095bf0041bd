"""Cells in several processes, one of which is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
from experimenting import ROOT, write

from expressive_losses.experiments import grid, runner
from expressive_losses.experiments.spec import load
from expressive_losses.locking import FolderLock

ALPHAS = [0.1, 0.2, 0.3, 0.4]


def jobs(tmp_path) -> list[runner.Job]:
    path = write(tmp_path, entries=[{"config": "small.yaml", "axes": {"method.alpha": ALPHAS}}])
    return [runner.Job(cell, tmp_path) for cell in grid.cells(load(path), "smoke")]


def states(results: list[runner.Result]) -> dict[str, str]:
    return {result.cell.labels["alpha"]: result.state for result in results}


EXPECTED = {"0.1": "failed", "0.2": "done", "0.3": "done", "0.4": "done"}


def test_only_what_was_in_work_is_tried_alone_and_sigterm_reaches_every_pool(tmp_path, monkeypatch):
    pools, handlers, begun = [], [], threading.Event()
    former = signal.getsignal(signal.SIGTERM)

    def pool(processes):
        pools.append(processes)
        return ThreadPoolExecutor(processes)

    def attempt(group):
        alpha = group[0].cell.labels["alpha"]
        handlers.append(signal.getsignal(signal.SIGTERM))
        if alpha == "0.2":
            begun.set()
        assert begun.wait(10)  # both are at work when the first is killed
        if alpha == "0.1" or (alpha == "0.2" and len(pools) == 1):  # with the first, its pool
            raise BrokenProcessPool
        return [runner.Result(job.cell, "done") for job in group]

    monkeypatch.setattr(runner, "_pool", pool)
    monkeypatch.setattr(runner, "_attempt_all", attempt)
    lines, done = [], []
    results = runner.run(jobs(tmp_path), 2, lines.append, done.append)
    assert states(results) == EXPECTED and len(results) == len(lines) == 4 and len(done) == 3
    assert pools == [2, 1, 1, 2]
    assert len(handlers) == 6 and former not in handlers
    assert signal.getsignal(signal.SIGTERM) == former


def test_processes_are_started_only_for_free_cells_and_what_is_said_is_counted(tmp_path, monkeypatch):
    """Cells that others hold are looked at again and again; to start a process means to import torch."""
    asked, (held, inner, *_) = jobs(tmp_path), [tmp_path / job.cell.key for job in jobs(tmp_path)]
    (inner / "run").mkdir(parents=True)
    held.mkdir()
    locks, pools, waits, lines = [FolderLock(held), FolderLock(inner / "run")], [], [], []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 5:
            locks.pop().release()  # train.py, by hand
        if len(waits) == 9:
            locks.pop().release()

    monkeypatch.setattr(runner.time, "sleep", wait)
    monkeypatch.setattr(runner, "_pool", lambda processes: pools.append(len(waits)) or ThreadPoolExecutor(processes))
    monkeypatch.setattr(runner, "_attempt_all", lambda group: [runner.Result(job.cell, "done") for job in group])
    results = runner.run(asked, 2, lines.append)
    assert pools == [0, 5, 9]
    assert [result.cell.labels["alpha"] for result in results[-2:]] == ["0.2", "0.1"] and len(results) == 4
    assert [line.partition(" ")[0] for line in lines] == ["[1]", "[2]", "[3]", "[4]"]


def test_cells_that_turn_out_to_be_busy_use_up_no_number(tmp_path, monkeypatch):
    states, lines = iter(["busy", "done", "busy", "done", "failed", "there"]), []
    monkeypatch.setattr(runner, "_WAIT", 0.0)
    monkeypatch.setattr(runner, "_attempt", lambda job: runner.Result(job.cell, next(states)))
    results = runner.run(jobs(tmp_path), 1, lines.append)
    assert [line.partition(":")[0] for line in lines] == ["[1] done", "[2] done", "[3] failed", "[4] there"]
    assert [result.cell.labels["alpha"] for result in results] == ["0.2", "0.4", "0.1", "0.3"]


KILLED = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from expressive_losses.experiments.processes import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, get_context("spawn"), initializer=end_with_parent)
    print(*(number for number in pool.map(abs, [-1, -2])), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_that_wait_for_work_end_with_the_one_that_was_killed(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    program = [sys.executable, "killed.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(program, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (found.stdout, found.returncode) == ("1 2\n", -signal.SIGKILL)  # the output ends with its last writer


def attempt_with_a_killer(group: list[runner.Job]) -> list[runner.Result]:
    """In a process of its own: the first cell kills it while another is at work; two wait for each other."""
    alpha, root = group[0].cell.labels["alpha"], group[0].root
    with open(root / alpha, "a") as file:
        file.write("begun\n")
    partner = {"0.1": "0.2", "0.3": "0.4", "0.4": "0.3"}.get(alpha)
    deadline = time.monotonic() + 60
    while partner and not (root / partner).exists():
        assert time.monotonic() < deadline, f"{alpha} is alone"
        time.sleep(0.01)
    if alpha == "0.1":
        os.kill(os.getpid(), signal.SIGKILL)
    if (root / alpha).read_text() == "begun\n" and alpha == "0.2":
        time.sleep(600)  # is ended with the pool
    return [runner.Result(job.cell, "done") for job in group]


@pytest.mark.slow
def test_after_a_kill_the_rest_goes_on_in_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_attempt_all", attempt_with_a_killer)
    results = runner.run(jobs(tmp_path), 2, print)
    assert states(results) == EXPECTED
    assert [(tmp_path / str(alpha)).read_text().count("begun") for alpha in ALPHAS] == [2, 2, 1, 1]
