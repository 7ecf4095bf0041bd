"""A small experiment, the committed ones, and rows as the runner writes them, for the tests of tables and figures."""

import json
from functools import cache
from pathlib import Path

import yaml

from expressive_losses.experiments import grid
from expressive_losses.experiments.cli import main
from expressive_losses.experiments.spec import load

ROOT = Path(__file__).parent.parent
PAPERS = sorted((ROOT / "scripts").glob("*/[tf]*.yaml"))  # table, figure; base and sweeps are none
RECIPES = sorted(path for path in (ROOT / "scripts" / "recipes").glob("*.yaml") if path.stem != "base")
SCRIPTS = PAPERS + RECIPES
CONFIG = {"method": {"name": "mtl_ibp", "alpha": 0.2}, "data": {"name": "digits"}, "eps": {"target": "0.05"}}
SMALL = {"model": {"name": "cnn_tiny", "width": 2, "hidden": 4}, "training.epochs": 1, "eps.schedule.length": 0.5}
EXPERIMENT = {
    "title": "a table",
    "verify": {"ibp": {"bound": "ibp", "first": 8}},
    "columns": {"natural": {"figure": "verify.ibp.natural", "published": "natural"}},
    "lines": ["method", "alpha"],
    "entries": [{"config": "small.yaml", "labels": {"method": "MTL"}, "axes": {"method.alpha": [0.1, 0.5]}}],
    "scales": {"smoke": {"set": SMALL}},
}


def write(folder: Path, config=CONFIG, **changes) -> Path:
    """Write the small experiment, changed; the label of its axis is one of its lines where some entry has that axis."""
    values = {**EXPERIMENT, **changes}
    if "method.alpha" not in yaml.safe_dump([values["entries"], values["scales"]]) and "lines" not in changes:
        values["lines"] = ["method"]
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    (folder / "table.yaml").write_text(yaml.safe_dump(values))
    return folder / "table.yaml"


def run(path: Path, *more: str) -> None:
    main(["run", str(path), "--runs", str(path.parent / "runs"), "--device", "cpu", *more])


def rows_of(path: Path) -> list[dict]:
    file = path.parent / "runs" / "results" / "smoke" / path.parent.name / "table.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@cache
def experiment_of(path: Path):
    return load(path)


@cache
def cells_of(path: Path, scale: str) -> list[grid.Cell]:
    return grid.cells(experiment_of(path), scale)


def made_up(cell: grid.Cell, natural: float) -> dict:
    """A row as the runner would write it."""
    first, *rest = cell.commands
    percent = {kind: {"percent": natural} for kind in ("natural", "adversarial", "verified")}
    verified = {name: {"images": 8, **percent, "decided_by": {"ibp": {"verified": 2}}} for name in cell.verifications}
    return {"command": first, "then": rest, "seed": cell.seed, "images": 360, "verify": verified}


def full_row(experiment, cell: grid.Cell, number: int) -> dict:
    """A row with a number in every place that a column or a figure looks at."""
    row = made_up(cell, 90.0 - number)
    seen = dict.fromkeys(("ibp", *cell.observe), 1.0 + number)
    losses = dict.fromkeys(("standard", "adversarial", "own", "crown_or_ibp", "ibp"), 0.5)
    return {
        **row,
        "measures": {"losses": losses},
        "epochs_observed": [{"epoch": epoch, **seen} for epoch in (1, 2)],
    }
