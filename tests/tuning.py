"""A small sweep, and work in place of its training, for the tests of tuning."""

import collections
import json
from pathlib import Path

import pytest
import torch
import yaml

from expressive_losses.experiments import sweep_file
from expressive_losses.experiments.cli import main

pytest.importorskip("optuna")
from expressive_losses.experiments import sweep  # noqa: E402 - it imports optuna

CONFIG = {
    "data": {"name": "digits"},
    "method": {"name": "mtl_ibp", "alpha": 0.2},
    "eps": {"target": "0.05", "schedule": {"length": 0.5}},
    "model": {"name": "cnn_tiny", "width": 2, "hidden": 4},
    "training": {"epochs": 1},
}


def write(folder: Path, **values) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "tune.yaml").write_text(yaml.safe_dump({"config": "config.yaml", **values}))
    return folder / "tune.yaml"


def run(path: Path, *more: str) -> dict:
    out = path.parent / "out"
    main(["sweep", str(path), "--out", str(out), "--device", "cpu", *more])
    return json.loads((out / "summary.json").read_text())


ALPHAS = [0.1, 0.2, 0.5]
ROW = {"verify": {"held_out": {"natural": {"percent": 90.0}, "verified": {"percent": 80.0}, "images": 10}}}


def tuner_of(path: Path, **options) -> sweep.Tuner:
    return sweep.Tuner(sweep_file.load(path), path.parent / "out", torch.device("cpu"), **options)


def searched(tuner: sweep.Tuner, key: str = "method.alpha") -> list:
    return [row["searched"][key] for row in tuner.rows()]


def states(tuner: sweep.Tuner) -> dict[str, int]:
    return collections.Counter(trial.state.name for trial in tuner.study.trials)


def replace_training(monkeypatch) -> tuple[list, list]:
    """In place of training: whatever the test puts into the list is called with the cell's folder; all are noted."""
    done, effects = [], []

    def complete_cell(cell, folder, device, data_root, watch):
        done.append(cell.resolved.method.alpha)
        for effect in effects:
            effect(folder)

    monkeypatch.setattr(sweep, "complete_cell", complete_cell)
    monkeypatch.setattr(sweep, "row_of_cell", lambda cell, root: ROW)
    monkeypatch.setattr(sweep, "_WAIT", 0.05)
    return done, effects
