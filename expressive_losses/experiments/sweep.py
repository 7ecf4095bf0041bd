"""Tuning with Optuna: natural against verified accuracy on held-out training images, never on the test set.

A sweep file names a config, what to search, and how long::

    config: ../../configs/quick/mnist_0.3/mtl_ibp.yaml
    validation: 10000                         images of the training set held out (or a share)
    set: {training.epochs: 4}
    search: {optimizer.lr: {low: 1.0e-4, high: 5.0e-3, log: true}}     beside the loss's own search space
    grid: {method.alpha: [0.01, 0.1]}         in place of a search: every combination once
    objective: pareto                         or mean: of the two accuracies, with pruning
    verify: {bound: ibp}
    trials: 20

The study is in a journal file, or in any database that Optuna knows, where several machines work on it. A process
that works on a trial holds the lock of the trial's folder: a running trial whose folder nobody holds is taken up again
where its training stopped, one whose folder is held is left alone and looked at again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field, PositiveInt, ValidationError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from expressive_losses import config as configs
from expressive_losses.config import Config, Section
from expressive_losses.errors import Diverged, UserError
from expressive_losses.experiments.execute import complete_cell, row_of_cell
from expressive_losses.experiments.grid import Cell, assignments_of
from expressive_losses.experiments.spec import Verification
from expressive_losses.locking import FolderInUse, FolderLock, held
from expressive_losses.registry import explain
from expressive_losses.trainer import Trainer

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_WAIT = 2.0  # seconds, until trials of other processes are looked at again
_TRIES, _PAUSE = 6, 0.5  # to open a database, and seconds between them


class Range(Section):
    """An interval to search, on a logarithmic scale if asked for."""

    low: float
    high: float
    log: bool = False


class Sweep(Section):
    """A sweep file."""

    name: str
    config: Path
    set: dict[str, Any] = {}
    search: dict[str, Range] = {}
    grid: dict[str, tuple[Any, ...]] = {}
    objective: Literal["pareto", "mean"] = "pareto"
    validation: float = Field(0.2, gt=0, description="held out of the training set: a share below 1, or a number")
    verify: Verification = Verification(bound="ibp")
    trials: PositiveInt = 20
    seed: int = 0

    @cached_property
    def base(self) -> Config:
        """The config without anything searched."""
        return configs.load(self.config, [configs.parse_assignment(text) for text in assignments_of(self.set)])

    @property
    def space(self) -> dict[str, Range]:
        """What is searched: the loss's own search space, and the file's; nothing of it is in the grid."""
        own = {f"method.{key}": Range(**limits) for key, limits in self.base.method.search_space.items()}
        return {key: limits for key, limits in {**own, **self.search}.items() if key not in self.grid and not self.grid}

    @cached_property
    def points(self) -> dict[str, dict[str, Any]]:
        """The points of the grid, in the order of the file, by the key of the cell that each trains."""
        products = (dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))
        return {self.cell(point).key: point for point in products} if self.grid else {}

    @property
    def size(self) -> int:
        """The number of trials."""
        return len(self.points) if self.grid else self.trials

    @property
    def asked(self) -> dict[str, Any]:
        """What a trial means: of two sweeps that differ here, neither may take the other's trials as its own."""
        return {
            "config": self.base.fingerprint(),
            "validation": self.validation,
            "verify": self.verify.model_dump(mode="json"),
            "objective": self.objective,
            "search": {key: limits.model_dump() for key, limits in self.space.items()},
            "grid": {key: list(values) for key, values in self.grid.items()},
        }

    def cell(self, values: Mapping[str, Any]) -> Cell:
        """Return what a trial trains and verifies."""
        fixed = {**self.set, "validation": self.validation}
        asked = self.verify.model_copy(update={"split": "validation"})
        return Cell(self.config, assignments_of(fixed, values), self.base.training.seed, {"held_out": asked})


def load(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: unreadable, a key or value that does not fit, or nothing to search.
    """
    values = configs.read(path)
    try:
        config = (Path(path).parent / str(values.get("config", ""))).resolve()
        sweep = Sweep.model_validate({**values, "name": Path(path).stem, "config": config})
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Sweep)}") from None
    if not sweep.grid and not sweep.space:
        raise UserError(
            f"{path}: nothing to search: method '{sweep.base.method.name}' has no search space, add `search:`"
        )
    return sweep


@dataclass(frozen=True)
class Tuner:
    """Runs the trials of a sweep.

    Args:
        sweep: what to search.
        out: folder of the study, the trained networks and the report.
        device: to compute on.
        data_root: folder of the data sets.
        storage: URL of a database; None: a journal file in ``out``.
        retried: numbers of trials that failed before :meth:`run` was called, by a mistake that may be mended by now.
    """

    sweep: Sweep
    out: Path
    device: torch.device
    data_root: Path | None = None
    storage: str | None = None
    retried: set[int] = field(default_factory=set)

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
        self.retried.update(trial.number for trial in self.failed())
        while self._left():
            with held(self.out):
                claim = self._claim()
            if claim is None:
                time.sleep(_WAIT)
            else:
                self._do(claim)

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that need nothing more: complete, pruned, diverged, or failed since :meth:`run` began.

        A point of the grid counts once.
        """
        done = [trial for trial in self.study.trials if trial.state in _FINISHED or "diverged" in trial.user_attrs]
        return self._once([*done, *self.failed()])

    def failed(self) -> list[FrozenTrial]:
        """Return the trials that failed by a mistake since :meth:`run` began: no data, or values that do not fit."""
        failed = [
            trial for trial in self.study.trials if "error" in trial.user_attrs and trial.number not in self.retried
        ]
        return [trial for trial in failed if "diverged" not in trial.user_attrs]

    def running(self) -> list[FrozenTrial]:
        """Return the trials that have begun and are not finished."""
        return self.study.get_trials(states=(TrialState.RUNNING,))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the complete trials, in order."""
        complete = [trial for trial in self.finished() if trial.state is TrialState.COMPLETE]
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
        if not study.trials:
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
        """Return whether a trial is neither finished nor run where nobody here can see how it goes."""
        elsewhere = [trial for trial in self.running() if self._elsewhere(trial)]
        return len(self._once([*self.finished(), *elsewhere])) < self.sweep.size

    def _once(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials, of a grid the first of each point: machines that start together may do one twice."""
        found: dict[Any, FrozenTrial] = {}
        for trial in trials:
            found.setdefault(trial.user_attrs["cell"] if self.sweep.grid else trial.number, trial)
        return list(found.values())

    def _claim(self) -> _Claim | None:
        """Take a trial whose process is gone, or else a new one; None when all are taken.

        Only one process at a time may do this in a folder.
        """
        unheld = {one.number for one in self.running() if not self._elsewhere(one) and _free(self._folder(one))}
        running = self.running()  # again: a process lets go of the folder as soon as Optuna knows the result
        for trial in running:
            if trial.number in unheld:
                # Optuna has no other way to go on with a trial; one that is told to have failed is lost
                return self._hold(Trial(self.study, trial._trial_id))
        taken = self._once([*self.finished(), *running])
        if len(taken) >= self.sweep.size:
            return None
        if self.sweep.grid and not self.study.get_trials(states=(TrialState.WAITING,)):
            keys = {trial.user_attrs["cell"] for trial in taken}
            key = next(key for key in self.sweep.points if key not in keys)
            self.study.enqueue_trial(self.sweep.points[key], {"cell": key})
        return self._hold(self.study.ask())

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
        values = {key: trial.suggest_categorical(key, list(grid)) for key, grid in self.sweep.grid.items()}
        for key, limits in self.sweep.space.items():
            values[key] = trial.suggest_float(key, limits.low, limits.high, log=limits.log)
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
            values = accuracies(row)
            self.study.tell(trial, sum(values) / 2 if single else values)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
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

    def _folder(self, trial: FrozenTrial) -> Path:
        return self.out / "cells" / trial.user_attrs.get("cell", "unknown")

    def _elsewhere(self, trial: FrozenTrial) -> bool:
        """Return whether a trial runs on another machine: only a database can be shared without the folder."""
        return self.storage is not None and not self._folder(trial).is_dir()


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


def _free(folder: Path) -> bool:
    """Return whether nobody works in a folder; a trial without one has not begun to train."""
    if not folder.is_dir():
        return True
    try:
        FolderLock(folder).release()
    except FolderInUse:
        return False
    return True
