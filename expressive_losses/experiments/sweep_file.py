"""Sweep files: what is tuned, over which values, judged how.

A sweep file names a config, what to search, and how long::

    config: ../../configs/quick/mnist_0.3/mtl_ibp.yaml
    validation: 10000                         images of the training set held out (or a share)
    set: {training.epochs: 4}
    search:                                   beside the loss's own search space
      optimizer.lr: {low: 1.0e-4, high: 5.0e-3, log: true}
      training.batch_size: {low: 64, high: 256, whole: true}
    grid: {method.alpha: [0.01, 0.1]}         in place of a search: every combination once
    objective: pareto                         or mean: of the two accuracies, with pruning
    verify: {bound: ibp}
    trials: 20
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator

from expressive_losses import config as configs
from expressive_losses.config import Config, Section
from expressive_losses.errors import UserError
from expressive_losses.experiments.grid import Cell, assignments_of
from expressive_losses.experiments.spec import Verification
from expressive_losses.registry import explain


class Range(Section):
    """An interval to search, on a logarithmic scale, and of whole numbers, if asked for."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _has_values(self):
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low: a logarithmic scale needs one above 0, got {self.low:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"whole: low and high must be whole numbers, got {self.low:g} and {self.high:g}")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The least value and the largest, as a config takes them."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    @property
    def asked(self) -> dict[str, Any]:
        """What is searched; trials from before there were whole numbers are of what says nothing of them."""
        return self.model_dump(exclude=None if self.whole else {"whole"})


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

    @model_validator(mode="after")
    def _grid_or_search(self):
        if self.grid and self.search:
            raise ValueError("search and grid: a grid is in place of a search; put all values into one of them")
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{key}: expected values, got none")
        return self

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
            "search": {key: limits.asked for key, limits in self.space.items()},
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
    _refuse_what_no_config_takes(sweep, path)
    return sweep


def _refuse_what_no_config_takes(sweep: Sweep, path: Path) -> None:
    """Name a key that there is not, or an end of a range that it does not take: else every trial failed by it."""
    for key, limits in sweep.space.items():
        low, high = limits.ends
        broken = [] if limits.whole else [low + (high - low) / math.pi]  # no whole number, unless low is high
        for value in (low, *broken, high):
            try:
                sweep.cell({key: value}).resolved  # noqa: B018 - it is built by being asked for
            except UserError as error:
                hint = "; if only whole numbers fit, say whole: true" if value in broken else ""
                raise UserError(f"{path}: search.{key}: {error}{hint}") from None
