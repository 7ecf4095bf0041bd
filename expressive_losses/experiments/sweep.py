"""Tuning with Optuna: natural against verified accuracy on held-out training images, never on the test set.

The study is in a journal file, or in any database that Optuna knows, where several machines work on it. A process
that works on a trial holds the lock of the trial's folder: a running trial whose folder nobody holds is taken up again
where its training stopped, one whose folder is held is left alone and looked at again. A trial says from its
beginning on which machine and in which folder it runs: one that is killed at once is found again there.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from expressive_losses.errors import Diverged, UserError
from expressive_losses.experiments.execute import complete_cell, row_of_cell
from expressive_losses.experiments.grid import Cell
from expressive_losses.experiments.settings import plain
from expressive_losses.experiments.sweep_file import Sweep
from expressive_losses.locking import FolderInUse, FolderLock, held, is_free
from expressive_losses.trainer import Trainer

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_WAIT = 2.0  # seconds, until trials of other processes are looked at again
_TRIES, _PAUSE = 6, 0.5  # to open a database, and seconds between them


@dataclass
class Tuner:
    """Runs the trials of a sweep.

    Args:
        sweep: what to search.
        out: folder of the study, the trained networks and the report.
        device: to compute on.
        data_root: folder of the data sets.
        storage: URL of a database; None: a journal file in ``out``.
        say: gets a line for each trial that ends.
    """

    sweep: Sweep
    out: Path
    device: torch.device
    data_root: Path | None = None
    storage: str | None = None
    say: Callable[[str], None] = lambda line: None
    _retried: frozenset[int] = field(default=frozenset(), init=False)  # failed earlier, by what may be mended by now

    @cached_property
    def study(self) -> optuna.Study:
        """The study, made if it is not there.

        Raises:
            UserError: it cannot be read or made, or its trials are of a sweep file that asked for something else.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with held(self.out):
                study = self._opened()
                self._check(study)
        except (OSError, ImportError, ValueError, SQLAlchemyError, StorageInternalError) as error:
            where = "--storage" if self.storage else self.out / "study.log"
            raise UserError(f"{where}: no study can be kept there: {str(error).partition(chr(10))[0]}") from None
        return study

    def run(self) -> None:
        """Do what is missing of the trials; those of dead processes first, and anew those that failed by a mistake.

        Trials of other processes are waited for, unless they run on a machine that shares only the database.
        """
        self._retried = frozenset(trial.number for trial in self.study.trials if _is_mistake(trial))
        while self._left():
            with held(self.out):
                claim = self._claim()
            if claim is None:
                time.sleep(_WAIT)
            else:
                self._do(claim)

    def done(self) -> list[FrozenTrial]:
        """Return the trials that have a result: complete, pruned or diverged. A point of the grid counts once."""
        return self._once(trial for trial in self.study.trials if _is_done(trial))

    def failed(self) -> list[FrozenTrial]:
        """Return the trials that failed by a mistake since :meth:`run` began, but those that others make up for."""
        mistakes = [one for one in self.study.trials if _is_mistake(one) and one.number not in self._retried]
        return self._beside(self.done(), mistakes)

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that need nothing more in this run: done or failed."""
        return [*self.done(), *self.failed()]

    def elsewhere(self) -> list[FrozenTrial]:
        """Return what is missing because it runs where nobody here can see how it goes, or was lost there."""
        running = [trial for trial in self.running() if self._is_elsewhere(trial)]
        return self._beside(self.finished(), running)

    def running(self) -> list[FrozenTrial]:
        """Return the trials that have begun and are not finished."""
        return self.study.get_trials(states=(TrialState.RUNNING,))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the complete trials, in order."""
        complete = [trial for trial in self.done() if trial.state is TrialState.COMPLETE]
        return [{"trial": trial.number, "searched": trial.params, **trial.user_attrs["row"]} for trial in complete]

    def _opened(self) -> optuna.Study:
        """Open or make the study.

        Of machines that make the tables of a database at the same moment all but one are refused, and find them there
        when they try again.
        """
        for _ in range(_TRIES - 1):
            try:
                return self._made()
            except (DBAPIError, StorageInternalError):
                time.sleep(_PAUSE)
        return self._made()

    def _made(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        single = self.sweep.objective == "mean"
        return optuna.create_study(
            study_name=self.sweep.name,
            storage=self.storage or JournalStorage(JournalFileBackend(str(self.out / "study.log"))),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4) if single else None,
            directions=["maximize"] if single else ["maximize", "maximize"],
            load_if_exists=True,
        )

    def _check(self, study: optuna.Study) -> None:
        """Keep with a new study what the sweep asks for; refuse trials of a sweep that asked for something else."""
        asked = self.sweep.asked
        if all(map(_is_mistake, study.trials)):  # nothing was found yet that could be taken for something else
            study.set_user_attr("asked", asked)
        former = study.user_attrs.get("asked", {})
        changed = [key for key, value in asked.items() if former.get(key) != value]
        if changed:
            where, other = ("the database", "") if self.storage else (self.out, " or choose another --out")
            raise UserError(
                f"sweep '{self.sweep.name}': the trials in {where} were made before {', '.join(changed)} changed; "
                f"to start anew rename the sweep file{other}, to go on change it back"
            )

    def _left(self) -> bool:
        """Return whether a trial is neither finished nor run elsewhere."""
        # in this order: what is finished elsewhere meanwhile may be missed for now, but is not counted twice
        return len(self.finished()) + len(self.elsewhere()) < self.sweep.size

    def _once(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials, of a grid the first of each point: machines that start together may do one twice."""
        found: dict[Any, FrozenTrial] = {}
        for trial in trials:
            found.setdefault(trial.user_attrs["cell"] if self.sweep.grid else trial.number, trial)
        return list(found.values())

    def _beside(self, first: Sequence[FrozenTrial], others: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of the others that stand for something that the sweep asks for beside the first."""
        return self._once([*first, *others])[len(first) : self.sweep.size]

    def _claim(self) -> _Claim | None:
        """Take a trial whose process is gone, or else a new one; None when all are taken.

        Only one process at a time may do this in a folder.
        """
        return self._take() or (self._take() if self._add() else None)

    def _take(self) -> _Claim | None:
        unheld = {one.number for one in self.running() if not self._is_elsewhere(one) and is_free(self._folder(one))}
        for trial in self.running():  # again: a process lets go of the folder as soon as Optuna knows the result
            if trial.number in unheld:
                # Optuna has no other way to go on with a trial; one that is told to have failed is lost
                return self._hold(Trial(self.study, trial._trial_id))
        return None

    def _add(self) -> bool:
        """Begin a trial, of a grid the first point that nobody has; return whether one was left.

        It is there with all that it needs at once or not at all: Optuna's own way has moments at which a process that
        is killed leaves a trial that nobody can tell from one of another machine.
        """
        running = self.running()
        taken = self._once([*self.finished(), *running])
        if len(taken) >= self.sweep.size:
            return False
        attributes, point = {"where": self._where}, {}
        if self.sweep.grid:
            keys = {trial.user_attrs["cell"] for trial in taken}
            attributes["cell"], point = next(item for item in self.sweep.points.items() if item[0] not in keys)
        choices = {key: CategoricalDistribution(self.sweep.grid[key]) for key in point}
        new = create_trial(state=TrialState.RUNNING, params=point, distributions=choices, user_attrs=attributes)
        self.study.add_trial(new)
        return True

    def _hold(self, trial: Trial) -> _Claim | None:
        """Give a trial its values and lock its folder; None when another process has it, or the values do not fit."""
        try:
            cell = self.sweep.cell(self._values(trial))
            trial.set_user_attr("cell", cell.key)
            folder = self.out / "cells" / cell.key
            folder.mkdir(parents=True, exist_ok=True)
            return _Claim(trial, cell, folder, FolderLock(folder))
        except FolderInUse:
            return None
        except UserError as error:
            self._fail(trial, error)
            return None

    def _values(self, trial: Trial) -> dict[str, Any]:
        """Return what a trial tries: what it was given before, else what the sampler proposes.

        The sampler is seeded by the trial: a process that starts again, or beside others, must not repeat the values of
        the first trials.
        """
        seed = int(np.random.SeedSequence([self.sweep.seed, trial.number]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        values = {key: trial.suggest_categorical(key, grid) for key, grid in self.sweep.grid.items()}
        for key, limits in self.sweep.space.items():
            suggest = trial.suggest_int if limits.whole else trial.suggest_float
            values[key] = suggest(key, *limits.ends, log=limits.log)
        return values

    def _do(self, claim: _Claim) -> None:
        """Train, verify and judge a trial; its folder is locked until Optuna knows the result."""
        trial, cell, folder, lock = claim
        single = self.sweep.objective == "mean"
        try:
            complete_cell(cell, folder, self.device, self.data_root, _Pruner(trial) if single else None)
            row = row_of_cell(cell, self.out / "cells")
            trial.set_user_attr("row", row)
            trial.set_user_attr("config", cell.resolved.resolved())
            natural, verified = accuracies(row)
            self.study.tell(trial, (natural + verified) / 2 if single else (natural, verified))
            self._say(trial, f"{natural:.2f} % natural, {verified:.2f} % verified")
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            self._say(trial, "pruned")
        except FolderInUse:  # somebody trains or verifies there by hand
            time.sleep(_WAIT)
        except UserError as error:
            self._fail(trial, error)
        finally:
            lock.release()

    def _fail(self, trial: Trial, error: UserError) -> None:
        if isinstance(error, Diverged):
            trial.set_user_attr("diverged", True)
        trial.set_user_attr("error", str(error))
        self.study.tell(trial, state=TrialState.FAIL)
        self._say(trial, f"failed: {error}")

    def _say(self, trial: Trial, result: str) -> None:
        tried = ", ".join(f"{key} {plain(value)}" for key, value in trial.params.items())
        self.say(f"[{len(self.finished())} of {self.sweep.size}] trial {trial.number} ({tried}): {result}")

    def _folder(self, trial: FrozenTrial) -> Path:
        return self.out / "cells" / trial.user_attrs.get("cell", "unknown")

    @property
    def _where(self) -> str:
        return f"{socket.gethostname()}:{self.out.resolve()}"

    def _is_elsewhere(self, trial: FrozenTrial) -> bool:
        """Return whether a trial runs on another machine: only a database can be shared without the folder."""
        here = trial.user_attrs.get("where") == self._where or self._folder(trial).is_dir()
        return self.storage is not None and not here


class _Claim(NamedTuple):
    """A trial that is this process's own as long as it holds the lock of the cell's folder."""

    trial: Trial
    cell: Cell
    folder: Path
    lock: FolderLock


def accuracies(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return (natural, verified) of a trial's row, in percent of the held-out images."""
    found = row["verify"]["held_out"]
    return found["natural"]["percent"], found["verified"]["percent"]


class _Pruner:
    """Tells Optuna the mean accuracy after each evaluated epoch, and stops what it thinks hopeless."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def __call__(self, trainer: Trainer) -> None:
        if trainer.step % trainer.steps_per_epoch:
            return
        last = trainer.run.metrics()[-1]
        if "held_out" not in last:
            return
        self._trial.report((last["held_out"]["natural"] + last["held_out"]["ibp"]) / 2, last["epoch"])
        if trainer.step < trainer.steps and self._trial.should_prune():
            raise optuna.TrialPruned


def _is_done(trial: FrozenTrial) -> bool:
    """Return whether a trial has a result; to diverge is one."""
    return trial.state in _FINISHED or (trial.state is TrialState.FAIL and "diverged" in trial.user_attrs)


def _is_mistake(trial: FrozenTrial) -> bool:
    """Return whether a trial failed by what can be mended: no data, or values that do not fit."""
    return trial.state is TrialState.FAIL and "error" in trial.user_attrs and "diverged" not in trial.user_attrs
