"""From an experiment file to its cells: one trained network each, with all that is asked of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from expressive_losses import config as configs
from expressive_losses.checkpoint import code_named_by
from expressive_losses.config import Config
from expressive_losses.errors import UserError
from expressive_losses.experiments.settings import plain, replaced, replaced_in_verification
from expressive_losses.experiments.spec import Entry, Experiment, Scale, ScaleSpec, Verification, at
from expressive_losses.registry import explain, suggest


@dataclass(frozen=True)
class Cell:
    """One network to train, and what is asked of it.

    Attributes:
        config: file.
        assignments: what ``--set`` would get, in order.
        verifications: by name.
        labels: what tables call the cell; of the paper's setting, whatever the scale replaces.
        paper: the config as the paper has it, without what the scale replaces.
        instead: in words, of which part of the paper's networks (or other values of an axis) the lines are.
        paper_verifications: likewise.
        in_paper: whether the paper has such a cell.
        published: the published figures, None where there are none.
        runs: whether this scale runs the cell; if not, tables say "not run".
        values: what is in the config's file, where that was read already.
    """

    config: Path
    assignments: tuple[str, ...]
    seed: int
    verifications: Mapping[str, Verification]
    measures: tuple[str, ...] = ()
    observe: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    paper: Config | None = None
    instead: tuple[str, ...] = ()
    paper_verifications: Mapping[str, Verification] = field(default_factory=dict)
    in_paper: bool = True
    published: Mapping[str, Any] | None = None
    runs: bool = True
    values: Mapping[str, Any] | None = field(default=None, repr=False)

    @cached_property
    def resolved(self) -> Config:
        """The config to train, exactly as train.py reads it from the command."""
        values = configs.read(self.config) if self.values is None else self.values
        return configs.resolve(
            values, [{"training": {"seed": self.seed}}, *map(_parsed, self.assignments)], str(self.config)
        )

    @cached_property
    def key(self) -> str:
        """Hash of the resolved config: cells of several tables that train the same network share it."""
        return key_of(self.resolved, self.observe)

    @cached_property
    def code(self) -> tuple[str, ...]:
        """Import paths of the user's own code in the config: whoever runs the cell trusts it by that."""
        return tuple(code_named_by({"config": self.resolved.resolved()}))

    def replaced(self, verifications: Iterable[str], evaluated: bool = False) -> tuple[str, ...]:
        """Return what the run has in place of the paper's setting: "network cnn_small", "4 epochs", "first 20 images".

        The setting that the full scale verifies with counts as the paper's.

        Args:
            verifications: those that count.
            evaluated: whether the attack of training's own evaluation counts.
        """
        found = replaced(self.resolved, self.paper, evaluated)
        for name in verifications:
            found += replaced_in_verification(self.verifications[name], self.paper_verifications[name])
        return tuple(dict.fromkeys([*self.instead, *found]))

    @property
    def comparable(self) -> bool:
        """Whether published figures say anything about this cell: they are of the same data set."""
        return not self.runs or self.resolved.data.name == self.paper.data.name

    @property
    def train_arguments(self) -> list[str]:
        """Arguments of train.py."""
        given = [word for text in self.assignments for word in ("--set", text)]
        return ["--config", _in_its_repository(self.config), "--seed", str(self.seed), *given]

    def verify_arguments(self, name: str) -> list[str]:
        """Arguments of verify.py, without those that name the network and the folders."""
        asked = self.verifications[name]
        words = ["--bound", asked.bound]
        words += ["--eps", asked.eps] if asked.eps is not None else []
        words += ["--first", str(asked.first)] if asked.first is not None else []
        words += ["--split", asked.split] if asked.split != "test" else []
        options = _options(asked).items()
        return [*words, *(word for key, value in options for word in ("--set", _assignment(key, value)))]

    def verify_folder(self, name: str) -> str:
        """Name of the folder of a verification inside the cell's: the same question has the same folder."""
        return f"verify-{_hash(self.verify_arguments(name))}"

    @property
    def trust_arguments(self) -> list[str]:
        """Arguments of verify.py that let the network import the user's own code."""
        return [word for path in self.code for word in ("--trust", path)]

    @cached_property
    def commands(self) -> list[str]:
        """The commands that repeat the cell by hand; they identify its row."""
        return [_text("train.py", self.train_arguments)] + [
            _text("verify.py", ["--model", "MODEL", *self.verify_arguments(name), *self.trust_arguments])
            for name in self.verifications
        ]


def described(cell: Cell) -> str:
    """Return a cell in words: what tables call it, and what it really runs where that is something else."""
    labels = [f"{key} {value}" for key, value in in_words(cell.labels).items()]
    instead = ", ".join(cell.replaced(cell.verifications)) if cell.in_paper else "what is not in the paper"
    return f"{', '.join(labels)}, seed {cell.seed}" + (f" (runs {instead})" if instead else "")


def in_words(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels as pages have them."""
    return {name: fraction(text) if name == "eps" else text for name, text in labels.items()}


def fraction(text: str) -> str:
    """Return a radius as papers write it: their code has 2/255 as 0.00784."""
    return next((f"{pixels}/255" for pixels in range(1, 17) if text == f"{pixels / 255:.5f}"), text)


def cells(experiment: Experiment, scale: Scale, seeds: Sequence[int] | None = None) -> list[Cell]:
    """Return the cells of an experiment at a scale, in the order of its file.

    Args:
        seeds: in place of the experiment's.

    Raises:
        UserError: a config that is not there or does not fit, a label or a column that no cell has anything for, an
            axis of a figure without numbers.
    """
    change = experiment.scales.get(scale, ScaleSpec())
    chosen = tuple(dict.fromkeys(seeds or change.seeds or experiment.seeds))
    found, known = [], []
    for entry, path, values in _files(experiment, scale):
        changes = {key: value for key, value in change.set.items() if value is not None}
        for radius, point in itertools.product(entry.tested or (None,), _points(entry, change)):
            assignments = assignments_of(entry.set, changes, entry.at.get(scale, {}), point)
            own = _of_paper(experiment, entry, point)
            paper = configs.resolve(values, map(_parsed, assignments_of(entry.set, own)), str(path))
            labels = _labels(entry, path, paper, point, radius)
            known.append(labels)
            runs = all(labels.get(key) in only for key, only in change.only.items())
            if not runs:  # a line that is not run is the paper's own
                labels = _labels(entry, path, paper, {key: point[key] for key in entry.axes}, radius)
            shared = {
                "verifications": _verifications(experiment, entry, scale, radius),
                "measures": experiment.measures,
                "observe": experiment.observe,
                "labels": labels,
                "paper": paper,
                "instead": _instead(experiment, entry, change),
                "paper_verifications": _verifications(experiment, entry, "full", radius),
                "in_paper": "full" in entry.scales,  # the scale that is the paper's own setting
                "published": _published(entry, paper, radius),
                "runs": runs,
                "values": values,
            }
            found += [Cell(path, assignments, seed, **shared) for seed in chosen]
    _check_only(f"{experiment.name}: scales.{scale}.only", change.only, known)
    _check_lines(experiment, known)
    _check_published(experiment, found)
    _check_stages(experiment, found)
    _check_numbers(experiment, known)
    return found


def _check_only(place: str, only: Mapping[str, Sequence[str]], known: Sequence[Mapping[str, str]]) -> None:
    for key, values in only.items():
        there = sorted({labels[key] for labels in known if key in labels})
        for value in values:
            if value not in there:
                raise UserError(f"{place}.{key}: no cell has '{value}'{suggest(value, there)}")
    chosen = any(all(labels.get(key) in values for key, values in only.items()) for labels in known)
    if all(only.values()) and not chosen:
        raise UserError(f"{place}: no cell has all of these labels")


def _check_lines(experiment: Experiment, known: Sequence[Mapping[str, str]]) -> None:
    """Raise a UserError for a label of the lines that no cell has: its column would be empty."""
    there = sorted({key for labels in known for key in labels})
    for name in experiment.lines if there else ():
        if name not in there:
            raise UserError(f"{experiment.name}: lines: no cell has the label '{name}'{suggest(name, there)}")


def _check_stages(experiment: Experiment, found: Sequence[Cell]) -> None:
    """Raise a UserError for a column of a stage that no verification of its name runs."""
    for key, column in experiment.columns.items():
        asked = [cell.verifications[name] for cell in found if (name := column.verification) in cell.verifications]
        there = list(dict.fromkeys(stage for one in asked for stage in one.stages))
        if column.stage and asked and column.stage not in there:
            place = f"{experiment.name}: columns.{key}.stage"
            raise UserError(f"{place}: no stage '{column.stage}' is run{suggest(column.stage, there)}")


def _check_published(experiment: Experiment, found: Sequence[Cell]) -> None:
    """Raise a UserError for a column whose published figure no cell has, though some cells have published figures."""
    published = [cell.published for cell in found if cell.published]
    for name, column in experiment.columns.items():
        path = column.published_path
        if path and published and all(at(figures, path) is None for figures in published):
            raise UserError(f"{experiment.name}: columns.{name}.published: no line has '{'.'.join(path)}'")


def _check_numbers(experiment: Experiment, known: Sequence[Mapping[str, str]]) -> None:
    """Raise a UserError where curves are to be drawn over a label that is no number."""
    figure = experiment.figure
    for labels in known if figure is not None and figure.kind == "lines" else ():
        try:
            float(labels.get(figure.x, ""))
        except ValueError:
            text = labels.get(figure.x, "")
            raise UserError(f"{experiment.name}: figure.x: lines need numbers, '{figure.x}' is '{text}'") from None


def assignments_of(*parts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the overrides as text, each at the place where it was given last."""
    merged: dict[str, Any] = {}
    for key, value in itertools.chain.from_iterable(part.items() for part in parts):
        merged.pop(key, None)
        merged[key] = value
    return tuple(_assignment(key, value) for key, value in merged.items())


def shard(all_cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """Return part ``index`` of ``count``: cells that train the same network are in the same part.

    Raises:
        UserError: when 0 <= index < count does not hold.
    """
    if not 0 <= index < count:
        raise UserError(f"--shard {index}/{count}: expected I/N with 0 <= I < N")
    keys = list(dict.fromkeys(cell.key for cell in all_cells))
    mine = set(keys[index::count])
    return [cell for cell in all_cells if cell.key in mine]


def key_of(config: Config, observe: Sequence[str] = ()) -> str:
    """Return the hash of a resolved config and of what is observed while it trains."""
    return _hash([config.fingerprint(), list(observe)])


def _in_its_repository(path: Path) -> str:
    """Return the path of a file from the repository that it is in, where commands are typed; the whole path, if none.

    Not from the working folder: the row of a cell is found from any.
    """
    file = Path(os.path.abspath(path))
    marked = (folder for folder in file.parents if (folder / ".git").exists() or (folder / "pyproject.toml").exists())
    root = next(marked, None)
    return (file if root is None else file.relative_to(root)).as_posix()


@lru_cache(maxsize=4096)
def _parsed(assignment: str) -> Mapping[str, Any]:
    return configs.parse_assignment(assignment)


def _options(asked: Verification) -> dict[str, Any]:
    """Return the options of the stages that run."""
    return {key: value for key, value in asked.options.items() if key.partition(".")[0] in asked.stages}


def _files(experiment: Experiment, scale: Scale) -> Iterator[tuple[Entry, Path, Mapping[str, Any]]]:
    """Yield the config files of a scale with what is in them, each read once."""
    root = (experiment.folder / experiment.configs).resolve()
    known: dict[Path, Mapping[str, Any]] = {}
    for entry in experiment.entries:
        if scale not in entry.scales:
            continue
        matching = sorted(root.glob(entry.config))
        files = [path for path in matching if path.stem != "base" and not path.stem.startswith("base_")]
        if not files:
            raise UserError(f"{experiment.name}: no config {entry.config} under {root}")
        for path in files:
            if path not in known:
                known[path] = configs.read(path)
            yield entry, path, known[path]


def _labels(entry: Entry, path: Path, paper: Config, point: Mapping[str, Any], radius: str | None) -> dict[str, str]:
    alpha = getattr(paper.method, "alpha", None)
    return {
        "data": paper.data.name,
        "eps": paper.eps.target.text if radius is None else radius,
        "method": paper.method.name + (f" {alpha:g}" if alpha is not None else ""),
        "network": paper.model.name,
        "recipe": path.stem,
        **entry.labels,
        **{_label(key): plain(value) for key, value in point.items()},
    }


#: What an axis is called, where it is not the last part of its key.
_LABELS = {"model": "network", "eps.target": "eps"}


def _label(key: str) -> str:
    return _LABELS.get(key, key.rpartition(".")[2])


def _points(entry: Entry, change: ScaleSpec) -> list[dict[str, Any]]:
    axes = {**entry.axes, **change.axes}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _of_paper(experiment: Experiment, entry: Entry, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the point of the paper's own axes that a point of a scale is, or stands for: then their first values.

    An axis that no label shows is described as a whole (:func:`_instead`), its values do not differ one by one.
    """
    return {
        key: point[key] if point[key] in values or _label(key) not in experiment.lines else values[0]
        for key, values in entry.axes.items()
    }


def _instead(experiment: Experiment, entry: Entry, change: ScaleSpec) -> tuple[str, ...]:
    """Return of how many of the paper's values a line is, for each axis that a scale replaces and no label shows."""
    return tuple(
        _count(_label(key), values, entry.axes[key])
        for key, values in change.axes.items()
        if key in entry.axes and _label(key) not in experiment.lines and list(values) != list(entry.axes[key])
    )


def _count(noun: str, ours: Sequence[Any], papers: Sequence[Any]) -> str:
    """Return "3 of the paper's 10 networks (model_a, ...)", or "2 networks (cnn_tiny, ...) for the paper's 8"."""
    named, many = ", ".join(map(plain, ours)), len(papers)
    if all(value in papers for value in ours):
        return f"{len(ours)} of the paper's {many} {noun}s ({named})"
    return f"{len(ours)} {noun}{'s' if len(ours) > 1 else ''} ({named}) for the paper's {many}"


def _verifications(experiment: Experiment, entry: Entry, scale: Scale, radius: str | None) -> dict[str, Verification]:
    change, here = experiment.scales.get(scale, ScaleSpec()).verify, entry.verify_at.get(scale, {})
    tested = {} if radius is None else {"eps": radius}
    found = {}
    for name, asked in experiment.verify.items():
        own = entry.verify.get(name, {})
        if own is None:
            continue
        parts = (asked.model_dump(), own, change, here)
        options = {key: value for part in parts for key, value in part.get("options", {}).items()}
        fields = {key: value for part in parts for key, value in part.items()}
        try:
            found[name] = Verification(**{**fields, **tested, "options": options})
        except ValidationError as error:
            place = f"{experiment.name}: verify.{name} of {entry.config}"
            raise UserError(f"{place}: {explain(error, Verification)}") from None
    return found


def _published(entry: Entry, paper: Config, radius: str | None) -> Mapping[str, Any] | None:
    """Return the published figures: the entry's; or the config's, which are of it as it is, without overrides.

    What the entry publishes beside them comes with either.
    """
    own = entry.published is not None or entry.set or entry.axes
    figures = _at_radius(entry.published if own else paper.paper, paper, radius)
    return {**(figures or {}), **entry.also_published} if entry.also_published else figures


def _at_radius(figures: Mapping[str, Any] | None, paper: Config, radius: str | None) -> Mapping[str, Any] | None:
    """Return the published figures at a radius; those that the network was not trained for are in ``others``."""
    if radius in (None, paper.eps.target.text) or figures is None:
        return figures
    about = {key: figures[key] for key in ("source", "verified_by", "note") if key in figures}
    other = {str(key): at for key, at in figures.get("others", {}).items()}.get(radius)  # 0.1 is a number in YAML
    return None if other is None else {**about, **other}


def _assignment(key: str, value: Any) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _text(program: str, arguments: Sequence[str]) -> str:
    return " ".join(["python", program, *(_quoted(word) for word in arguments)])


def _quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set(' {}[]"*') else word


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
