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

The study is in a journal file, or in any database that Optuna knows, where several machines work on it. A trial that
died is taken up again where its training stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field, PositiveInt, ValidationError

from expressive_losses import config as configs
from expressive_losses.config import Config, Section
from expressive_losses.errors import UserError
from expressive_losses.experiments.execute import execute, row_of_cell
from expressive_losses.experiments.grid import Cell, assignments_of
from expressive_losses.experiments.spec import Verification
from expressive_losses.locking import FolderInUse, FolderLock
from expressive_losses.registry import explain
from expressive_losses.trainer import Trainer

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


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

    @property
    def size(self) -> int:
        """The number of trials."""
        return math.prod(len(values) for values in self.grid.values()) if self.grid else self.trials

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
    """

    sweep: Sweep
    out: Path
    device: torch.device
    data_root: Path | None = None
    storage: str | None = None

    @cached_property
    def study(self) -> optuna.Study:
        """The study, made if it is not there."""
        self.out.mkdir(parents=True, exist_ok=True)
        storage = self.storage or JournalStorage(JournalFileBackend(str(self.out / "study.log")))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        single = self.sweep.objective == "mean"
        return optuna.create_study(
            study_name=self.sweep.name,
            storage=storage,
            sampler=self._sampler(),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4) if single else None,
            directions=["maximize"] if single else ["maximize", "maximize"],
            load_if_exists=True,
        )

    def run(self) -> None:
        """Do what is missing of the trials; those of dead processes first."""
        self._take_up_dead_trials()
        while len(self.finished()) < self.sweep.size:
            self.study.optimize(self._objective, n_trials=1, catch=(UserError,))
            if self.sweep.grid and not self._left():
                return

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that need nothing more: complete, pruned, or failed by themselves (diverged)."""
        return [t for t in self.study.trials if t.state in _FINISHED or "error" in t.user_attrs]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the complete trials, in order."""
        rows = []
        for trial in self.study.trials:
            if trial.state is TrialState.COMPLETE:
                rows.append({"trial": trial.number, "searched": trial.params, **trial.user_attrs["row"]})
        return rows

    def _left(self) -> bool:
        done = {tuple(sorted(trial.params.items())) for trial in self.finished()}
        return len(done) < self.sweep.size

    def _sampler(self) -> optuna.samplers.BaseSampler:
        if self.sweep.grid:
            return optuna.samplers.GridSampler(self.sweep.grid, seed=self.sweep.seed)
        return optuna.samplers.TPESampler(seed=self.sweep.seed)

    def _take_up_dead_trials(self) -> None:
        """Ask again for the values of trials whose process is gone; their training goes on from its checkpoint.

        A trial is dead when its folder is on this machine and nobody holds its lock.
        """
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            folder = self.out / "cells" / trial.user_attrs.get("cell", "unknown")
            if folder.is_dir() and _free(folder):
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params)

    def _objective(self, trial: Trial) -> float | tuple[float, float]:
        values = {key: trial.suggest_categorical(key, list(grid)) for key, grid in self.sweep.grid.items()}
        for key, limits in self.sweep.space.items():
            values[key] = trial.suggest_float(key, limits.low, limits.high, log=limits.log)
        cell = self.sweep.cell(values)
        trial.set_user_attr("cell", cell.key)
        watch = _Pruner(trial) if self.sweep.objective == "mean" else None
        try:
            execute(cell, self.out / "cells", self.device, self.data_root, watch)
        except FolderInUse:
            raise
        except UserError as error:
            trial.set_user_attr("error", str(error))
            raise
        row = row_of_cell(cell, self.out / "cells")
        trial.set_user_attr("row", row)
        natural, verified = accuracies(row)
        return (natural + verified) / 2 if self.sweep.objective == "mean" else (natural, verified)


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
    try:
        FolderLock(folder).release()
    except FolderInUse:
        return False
    return True
