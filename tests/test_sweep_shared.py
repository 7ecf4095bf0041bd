"""Tuning by several processes and machines: a trial is neither lost nor done twice, whenever a process is killed."""

import collections
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from tuning import ALPHAS, replace_training, run, searched, states, sweep, tuner_of, write

from expressive_losses.errors import UserError
from expressive_losses.experiments import sweep_file, sweep_report
from expressive_losses.experiments.cli import CellsFailed
from expressive_losses.locking import FolderLock


@pytest.fixture
def work(monkeypatch):
    return replace_training(monkeypatch)


def in_processes(*targets) -> list[int]:
    """Run functions at the same moment, each in a process of its own; return the exit codes."""
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(len(targets))
    processes = [context.Process(target=lambda target=target: (begin.wait(), target())) for target in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_a_grid_that_is_killed_goes_on_with_the_same_point(tmp_path, work, killed):
    done, effects = work
    path = write(tmp_path, grid={"method.alpha": ALPHAS})
    effects.append(lambda folder: len(done) < killed or os.kill(os.getpid(), signal.SIGKILL))
    assert in_processes(lambda: tuner_of(path).run()) == [-signal.SIGKILL]
    effects.clear()
    assert states(tuner_of(path)) == collections.Counter(["RUNNING", *["COMPLETE"] * (killed - 1)])
    tuner = tuner_of(path)
    tuner.run()
    assert done == ALPHAS[killed - 1 :], "the point that was killed first, the finished ones not again"
    assert searched(tuner) == ALPHAS and states(tuner) == {"COMPLETE": 3}


@pytest.mark.parametrize("moment", ["_hold", "_values"])
@pytest.mark.parametrize("storage", ["journal", "database"])
@pytest.mark.parametrize("values", [{"grid": {"method.alpha": ALPHAS}}, {"trials": 3}], ids=["grid", "search"])
def test_a_trial_killed_before_it_trains_is_not_lost(tmp_path, work, monkeypatch, moment, storage, values):
    path = write(tmp_path, **values)
    url = None if storage == "journal" else f"sqlite:///{tmp_path}/study.db"
    with monkeypatch.context() as patch:
        patch.setattr(sweep.Tuner, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert in_processes(lambda: tuner_of(path, storage=url).run()) == [-signal.SIGKILL]
    tuner = tuner_of(path, storage=url)
    assert states(tuner) == {"RUNNING": 1}
    tuner.run()
    assert len(set(searched(tuner))) == 3 and states(tuner) == {"COMPLETE": 3}


@pytest.mark.parametrize("storage", ["journal", "database"])
def test_processes_share_a_grid_and_each_point_is_done_once(tmp_path, work, storage):
    _, effects = work
    path = write(tmp_path, grid={"method.alpha": ALPHAS, "training.l1": [0.0, 1e-6]})
    url = None if storage == "journal" else f"sqlite:///{tmp_path}/study.db"

    def note(folder: Path) -> None:
        with open(folder / "trained", "a") as file:
            file.write("x")
        time.sleep(0.1)

    effects.append(note)
    assert in_processes(*[lambda: tuner_of(path, storage=url).run()] * 3) == [0, 0, 0]
    tuner = tuner_of(path, storage=url)
    assert len(searched(tuner)) == 6 and states(tuner) == {"COMPLETE": 6}
    assert [file.read_text() for file in tmp_path.glob("out/cells/*/trained")] == ["x"] * 6


@pytest.mark.parametrize("how", ["finishes", "dies"])
def test_a_point_that_another_process_has_is_waited_for(tmp_path, work, how):
    """It is neither tried nor failed meanwhile; if the other process dies, it is taken up."""
    done, _ = work
    path = write(tmp_path, grid={"method.alpha": ALPHAS})
    other = tuner_of(path)
    claim = other._claim()
    tuner = tuner_of(path)
    thread = threading.Thread(target=tuner.run)
    thread.start()
    thread.join(1)
    assert thread.is_alive() and done == ALPHAS[1:], "the others are done, this one is waited for"
    assert states(other) == {"COMPLETE": 2, "RUNNING": 1}
    if how == "finishes":
        other._do(claim)
    else:
        claim.lock.release()
    thread.join(20)
    assert not thread.is_alive() and sorted(done) == ALPHAS
    assert searched(tuner) == ALPHAS and states(tuner) == {"COMPLETE": 3}


def test_a_folder_that_is_used_by_hand_is_looked_at_again(tmp_path, work):
    done, effects = work
    path = write(tmp_path, grid={"method.alpha": [0.1]})
    tuner = tuner_of(path)
    (key,) = tuner.sweep.points
    (tmp_path / "out" / "cells" / key / "run").mkdir(parents=True)
    lock = FolderLock(tmp_path / "out" / "cells" / key / "run")
    effects += [lambda folder: len(done) < 3 or lock.release(), lambda folder: FolderLock(folder / "run").release()]
    tuner.run()
    assert done == [0.1] * 3 and states(tuner) == {"COMPLETE": 1}


def test_processes_share_a_search_and_do_no_trial_more(tmp_path, work):
    work[1].append(lambda folder: time.sleep(0.1))
    path = write(tmp_path, trials=5)
    assert in_processes(*[lambda: tuner_of(path).run()] * 3) == [0, 0, 0]
    assert states(tuner_of(path)) == {"COMPLETE": 5} and len(set(searched(tuner_of(path)))) == 5


def test_a_machine_that_makes_the_tables_when_another_does_tries_again(tmp_path, work, monkeypatch):
    """They share no folder, so that nothing but the database can keep them apart."""
    url = f"sqlite:///{tmp_path}/study.db"
    create, refusals = (
        sweep.optuna.create_study,
        [sweep.DBAPIError("CREATE TABLE studies", {}, Exception("already exists"))],
    )

    def create_study(**options):
        study = create(**options)  # by the other machine
        if refusals:
            raise refusals.pop()
        return study

    monkeypatch.setattr(sweep.optuna, "create_study", create_study)
    tuner = tuner_of(write(tmp_path, trials=1), storage=url)
    tuner.run()
    assert states(tuner) == {"COMPLETE": 1}


def test_a_trial_on_a_machine_that_shares_only_the_database_is_not_waited_for(tmp_path, work):
    path = write(tmp_path, grid={"method.alpha": ALPHAS})
    url = f"sqlite:///{tmp_path}/study.db"
    elsewhere = sweep.Tuner(sweep_file.load(path), tmp_path / "elsewhere", torch.device("cpu"), storage=url)
    claim = elsewhere._claim()
    lost = f"^1 of the trials run on another machine or were lost there, .* at [^ ]+:{tmp_path}/elsewhere$"
    with pytest.raises(CellsFailed, match=lost):
        run(path, "--storage", url)
    tuner = tuner_of(path, storage=url)
    assert searched(tuner) == ALPHAS[1:] and len(tuner.running()) == 1
    elsewhere._do(claim)
    assert run(path, "--storage", url)["trials"] == 3 and searched(tuner) == ALPHAS


@pytest.mark.parametrize("values", [{"grid": {"method.alpha": ALPHAS}}, {"trials": 3}], ids=["grid", "search"])
def test_what_failed_in_one_process_and_was_mended_is_no_failure_of_another(tmp_path, work, values):
    _, effects = work

    def fail(folder):
        raise UserError("no data")

    path = write(tmp_path, **values)
    tuner, other = tuner_of(path), tuner_of(path)
    claim = tuner._claim()
    effects.append(fail)
    other._do(other._claim())
    effects.clear()
    assert len(tuner.failed()) == 1
    tuner._do(claim)
    tuner_of(path).run()
    summary = sweep_report.write(tuner)
    assert (summary["trials"], summary["pruned or diverged"], summary["failed"]) == (3, 0, 0)
    assert not sweep_report.complaint(tuner) and states(tuner) == {"COMPLETE": 3, "FAIL": 1}
