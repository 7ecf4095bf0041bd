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

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from expressive_losses import config as configs
from expressive_losses.config import Radius, Section
from expressive_losses.errors import UserError
from expressive_losses.registry import explain, suggest
from expressive_losses.verify import build_stages

Scale = Literal["smoke", "cpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "full")


#: A radius in pixel units as it was written (0.1 is a number in YAML), by which tables find its figures.
RadiusText = Annotated[str, BeforeValidator(lambda value: Radius.parse(value).text)]


class Verification(Section):
    """One run of verify.py on a trained network.

    ``options`` are those of stages (``{"bab.timeout": 5}``); those of stages that do not run are left out.
    """

    bound: str = "cascade"
    eps: RadiusText | None = Field(None, description="radius in pixel units; null: the one trained for")
    first: PositiveInt | None = Field(None, description="only the first N images")
    split: Literal["test", "train", "validation"] = "test"
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _can_be_built(self):
        try:
            _ = self.stages
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def stages(self) -> Mapping[str, Mapping[str, Any]]:
        """The stages that run by name, each with all its options."""
        return _stages(self.bound, json.dumps(self.options))


@lru_cache(maxsize=256)
def _stages(bound: str, options: str) -> Mapping[str, Mapping[str, Any]]:
    names = {stage.name for stage in build_stages(bound)}
    given: dict[str, dict[str, Any]] = {}
    for key, value in json.loads(options).items():
        name, _, field = key.partition(".")
        if name in names:
            given.setdefault(name, {})[field] = value
    return {stage.name: stage.spec() for stage in build_stages(bound, given)}


def _of_a_verification(fields: dict[str, Any]) -> dict[str, Any]:
    try:
        Verification.model_validate(fields)
    except ValidationError as error:
        raise ValueError(explain(error, Verification)) from None
    return fields


#: Fields of a verification, in place of those of another: only what is given counts.
Change = Annotated[dict[str, Any], AfterValidator(_of_a_verification)]


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
    def path(self) -> tuple[str, ...]:
        """The keys that lead to the figure in a row."""
        return tuple(self.figure.split(".")) if isinstance(self.figure, str) else self.figure

    @property
    def published_path(self) -> tuple[str, ...]:
        """The keys that lead to the published figure; none where it has none."""
        return tuple(self.published.split(".")) if isinstance(self.published, str) else self.published or ()

    @property
    def verification(self) -> str | None:
        """The name of the verification that the figure is of; None for a figure of training."""
        kind, *rest = self.path
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
    def _of_its_kind(self):
        if not self.x and self.kind in _WITH_X:
            raise ValueError(f"x: {self.kind} need one")
        expected = _COUNTS.get(self.kind, len(self.y))
        if len(self.y) != expected:
            raise ValueError(f"y: {self.kind} need {expected} of them, got {', '.join(self.y)}")
        return self

    @model_validator(mode="after")
    def _of_its_columns(self):
        if not isinstance(self.ylabel, str) and set(self.ylabel) != set(self.y):
            raise ValueError(f"ylabel: expected one for each of {', '.join(self.y)}, got {', '.join(self.ylabel)}")
        return self


#: Kinds of figures with an x that is named, and the columns of those that take so many.
_WITH_X = ("lines", "scatter", "ranges", "bars")
_COUNTS = {"scatter": 1, "ranges": 3}


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
    also_published: dict[str, Any] = Field({}, description="figures beside those, of the radius of the test")
    tested: tuple[RadiusText, ...] = Field(
        (), description="radii in place of the trained one: a line each, one network"
    )
    verify: dict[str, Change | None] = Field(
        {}, description="fields of verifications in place of the experiment's; null: not asked of these"
    )
    scales: tuple[Scale, ...] = Field(SCALES, description="where the entry is part of the grid")
    at: dict[Scale, dict[str, Any]] = Field({}, description="overrides at one scale, after the scale's own")
    verify_at: dict[Scale, Change] = Field(
        {}, description="fields of every verification at one scale, after the scale's own"
    )

    @field_validator("published")
    @classmethod
    def _others_by_radius(cls, figures: dict[str, Any] | None) -> dict[str, Any] | None:
        others = (figures or {}).get("others", {})
        if not isinstance(others, Mapping) or not all(isinstance(one, Mapping) for one in others.values()):
            raise ValueError(f"others: expected figures by radius, got {others!r}")
        return figures


class ScaleSpec(Section):
    """What a scale replaces."""

    set: dict[str, Any] = Field({}, description="overrides after those of the entries; null: leave as it is there")
    axes: dict[str, tuple[Any, ...]] = Field({}, description="values in place of those of an axis, or one more axis")
    seeds: tuple[int, ...] | None = None
    verify: Change = Field({}, description="fields of every verification")
    only: dict[str, tuple[str, ...]] = Field({}, description="run only the cells with these labels; of none: nothing")


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

    @model_validator(mode="after")
    def _names_are_known(self):
        for name, column in self.columns.items():
            self._check_path(f"columns.{name}.figure", column)
        published = {column.published_path[0] for column in self.columns.values() if column.published}
        for number, entry in enumerate(self.entries):
            _expect(f"entries.{number}.verify", entry.verify, self.verify)
            figures = entry.published or {}
            for one in (figures, *figures.get("others", {}).values(), entry.also_published):
                _expect(f"entries.{number}.published", one, [*published, *ABOUT])
        if self.figure is not None:
            _expect("figure.x", filter(None, [self.figure.x]), self._of_axis(self.figure))
            _expect("figure.y", self.figure.y, self._drawn(self.figure))
            _expect("figure.panels", self.figure.panels, self.lines)
        return self

    def _check_path(self, key: str, column: Column) -> None:
        """Raise a ValueError where a column's path leads nowhere in any row."""
        kind, *rest = column.path
        _expect(key, [kind], ("verify", "measures", *_TRAINED))
        verified = [self.verify] if column.stage else [self.verify, _VERIFIED]
        known = {"verify": verified, "measures": [self.measures]}.get(kind, [])
        for part, names in zip(rest, known, strict=False):
            _expect(key, [part], names)
        length = 1 + len(known) + (kind == "measures")  # what a measure is of, it says itself
        if len(column.path) != length:
            raise ValueError(f"{key}: expected {length} names with dots between them, got {'.'.join(column.path)}")

    def _of_axis(self, figure: Figure) -> Iterable[str]:
        return self.columns if figure.kind == "scatter" else self.lines

    def _drawn(self, figure: Figure) -> Iterable[str]:
        if figure.kind == "radii":
            return dict.fromkeys(name.rpartition(" ")[0] for name in self.columns if " " in name)
        return (*self.observe, *_HELD_OUT) if figure.kind == "epochs" else self.columns


#: The figures of a row that are of the training itself, and those of each verification.
_TRAINED = ("natural", "adversarial", "ibp", "training_seconds")
_VERIFIED = ("natural", "adversarial", "verified")
#: What an entry of published figures may say beside figures.
ABOUT = ("source", "table", "verified_by", "note", "others")
#: What training measures of the held-out images after an epoch, whatever else is observed.
_HELD_OUT = ("natural", "ibp")


def _expect(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ValueError that names the key of the first name that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: unknown '{name}'{suggest(name, known)}")


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


def at(values: Mapping[str, Any], path: str | Iterable[str]) -> Any:
    """Return what is at a path of keys, None where nothing is."""
    here: Any = values
    for key in path.split(".") if isinstance(path, str) else path:
        if not isinstance(here, Mapping) or key not in here:
            return None
        here = here[key]
    return here


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
