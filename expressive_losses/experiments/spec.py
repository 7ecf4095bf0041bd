"""An experiment file: which configs, overrides and seeds make a table or a figure, and what each scale replaces.

::

    title: "Expressive Losses, table 1"
    configs: ../../configs                 folder of the configs, relative to this file
    verify: {bab: {bound: cascade}}        what is asked of each trained network, by name
    columns: {verified: {figure: verify.bab.verified, published: verified}}
    lines: [data, eps, method]             the labels that make a line of the table
    entries:
      - config: mnist_0.1/cc_ibp.yaml      may be a pattern (*)
        set: {method.alpha: 0.1}           overrides
        axes: {method.alpha: [0.1, 0.5]}   one cell for each value; several axes: their product
      - set: {training.epochs: 30}         what several entries share; those inside may have entries of their own
        entries: [{config: mnist_0.1/ibp.yaml}, {config: mnist_0.1/sabr.yaml}]
    scales:
      smoke: {set: {data: digits}, verify: {first: 20}}

A file may ``extends:`` another, as configs do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from expressive_losses import config as configs
from expressive_losses.config import Section
from expressive_losses.errors import UserError
from expressive_losses.registry import explain

Scale = Literal["smoke", "cpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "full")


class Verification(Section):
    """One run of verify.py on a trained network.

    ``options`` are those of stages (``{"bab.timeout": 5}``); those of stages that do not run are left out.
    """

    bound: str = "cascade"
    eps: str | None = Field(None, description="radius in pixel units; null: the one trained for")
    first: PositiveInt | None = Field(None, description="only the first N images")
    split: Literal["test", "train", "validation"] = "test"
    options: dict[str, Any] = {}


class Column(Section):
    """A figure of the table: where it is in a row, where its published value is, how seeds become one number."""

    figure: tuple[str, ...] | str = Field(
        description="path into a row, e.g. verify.bab.verified or natural; as a list where a name has dots"
    )
    stage: str | None = Field(None, description="the percentage that this stage verified; figure is then verify.NAME")
    published: tuple[str, ...] | str | None = Field(None, description="key, or path of keys, into `paper`")
    statistic: Literal["mean", "median", "lower quartile", "upper quartile", "min", "max"] = "mean"
    percent: bool = Field(
        True, description="an accuracy; false for seconds and losses, whose differences are not given"
    )

    @property
    def verification(self) -> str | None:
        """The name of the verification that the figure is of; None for a figure of training."""
        kind, *rest = self.figure.split(".") if isinstance(self.figure, str) else self.figure
        return rest[0] if kind == "verify" else None


class Figure(Section):
    """How the lines of the table are drawn."""

    kind: Literal["lines", "radii", "scatter", "ranges", "bars", "epochs"] = "lines"
    x: str = Field("", description="a label (lines, ranges, bars), a column (scatter)")
    y: tuple[str, ...] = Field(
        description="columns (of ranges: low, high, middle); of radii: their names without the radius they end in; "
        "of epochs: what was observed"
    )
    panels: tuple[str, ...] = Field((), description="labels: one picture for each of their values")
    log: bool = Field(False, description="logarithmic x axis (lines)")
    log_y: bool = Field(False, description="logarithmic y axis (lines)")
    ylabel: str | dict[str, str] = Field(
        "%", description="by column: each of them has a picture of its own, as quantities do that are not the same"
    )

    @model_validator(mode="after")
    def _of_its_columns(self):
        if not isinstance(self.ylabel, str) and set(self.ylabel) != set(self.y):
            raise ValueError(f"ylabel: expected one for each of {', '.join(self.y)}, got {', '.join(self.ylabel)}")
        return self


class Entry(Section):
    """Some cells of the grid."""

    config: str
    labels: dict[str, str] = {}
    set: dict[str, Any] = {}
    axes: dict[str, tuple[Any, ...]] = {}
    published: dict[str, Any] | None = Field(
        None,
        description="in place of the config's `paper`, `others` by radius; a figure: a number, or {mean, deviation}",
    )
    tested: tuple[str, ...] = Field((), description="radii in place of the trained one: a line each, one network")
    verify: dict[str, dict[str, Any] | None] = Field(
        {}, description="fields of verifications in place of the experiment's; null: not asked of these"
    )
    scales: tuple[Scale, ...] = Field(SCALES, description="where the entry is part of the grid")
    at: dict[Scale, dict[str, Any]] = Field({}, description="overrides at one scale, after the scale's own")
    verify_at: dict[Scale, dict[str, Any]] = Field(
        {}, description="fields of every verification at one scale, after the scale's own"
    )


class ScaleSpec(Section):
    """What a scale replaces."""

    set: dict[str, Any] = Field({}, description="overrides after those of the entries; null: leave as it is there")
    axes: dict[str, tuple[Any, ...]] = Field({}, description="values in place of those of an axis, or one more axis")
    seeds: tuple[int, ...] | None = None
    verify: dict[str, Any] = Field({}, description="fields of every verification")
    only: dict[str, tuple[str, ...]] = Field({}, description="run only the cells with these labels")


class Experiment(Section):
    """A table or a figure."""

    name: str
    folder: Path
    title: str
    note: str = Field("", description="what a reader of the table must know")
    source: str = Field("", description="the paper")
    configs: str = "."
    verify: dict[str, Verification] = {}
    measures: tuple[str, ...] = Field((), description="of measures.py, on the trained network")
    observe: tuple[str, ...] = Field((), description="of observe.py, after each epoch of training")
    columns: dict[str, Column] = {}
    lines: tuple[str, ...] = ("data", "eps", "method", "network")
    figure: Figure | None = None
    seeds: tuple[int, ...] = (100,)
    rows: dict[Scale, str] = Field({}, description="files of the rows, in place of SCALE/PAPER/TABLE.jsonl")
    entries: tuple[Entry, ...]
    scales: dict[Scale, ScaleSpec] = {}

    @field_validator("entries", mode="before")
    @classmethod
    def _one_by_one(cls, entries: Any) -> Any:
        return list(_flat(entries, {}))


def _flat(entries: Any, shared: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the innermost entries, each merged over what the entries around it share."""
    if not isinstance(entries, list | tuple) or not entries:
        raise ValueError(f"expected a list of entries, got {entries!r}")
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise ValueError(f"expected a mapping with 'config' or 'entries', got {entry!r}")
        merged = configs.merge(shared, entry)
        inner = merged.pop("entries", None)
        if inner is None:
            yield merged
        else:
            yield from _flat(inner, merged)


def load(path: Path) -> Experiment:
    """Read an experiment file.

    Raises:
        UserError: unreadable, or a key or value that does not fit; names the file and the key.
    """
    path = Path(path)
    values = configs.read(path)
    name = f"{path.resolve().parent.name}/{path.stem}"
    try:
        return Experiment.model_validate({**values, "name": name, "folder": path.parent})
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Experiment)}") from None
