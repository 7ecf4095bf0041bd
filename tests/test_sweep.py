"""Tuning: Pareto front and hypervolume on literal points, resuming, nothing of the test set."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from expressive_losses.config import load as load_config
from expressive_losses.errors import UserError
from expressive_losses.experiments.cli import main
from expressive_losses.experiments.pareto import hypervolume, pareto_front
from expressive_losses.registry import LOSSES

optuna = pytest.importorskip("optuna")
from expressive_losses.experiments import sweep  # noqa: E402 - it imports optuna

ROOT = Path(__file__).parent.parent
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


def run(path: Path) -> dict:
    out = path.parent / "out"
    main(["sweep", str(path), "--out", str(out), "--device", "cpu"])
    return json.loads((out / "summary.json").read_text())


def test_pareto_front_of_literal_points():
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (3.0, 1.0), (2.5, 1.0), (3.0, 1.0)]
    assert pareto_front(points) == [0, 1, 3]
    assert pareto_front([]) == []


def test_hypervolume_of_literal_points():
    # 1 x 5 + (2 - 1) x 4 + (3 - 2) x 1
    assert hypervolume([(1.0, 5.0), (2.0, 4.0), (3.0, 1.0), (2.0, 2.0)]) == 10
    # above (1, 1): (2 - 1) x (4 - 1); the points on the border cover nothing
    assert hypervolume([(1.0, 5.0), (2.0, 4.0), (3.0, 1.0)], (1.0, 1.0)) == 3
    assert hypervolume([]) == 0


def test_a_grid_is_done_once_its_front_is_exported_and_held_out_images_judge(tmp_path):
    path = write(tmp_path, grid={"method.alpha": [0.1, 0.5]}, validation=0.2)
    summary = run(path)
    rows = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert {row["searched"]["method.alpha"] for row in rows} == {0.1, 0.5}
    assert all(row["split"] == "validation" and "--split validation" in row["then"][0] for row in rows)
    assert summary["images"] == round(0.2 * 1437), "a fifth of the training images"
    points = [
        (row["verify"]["held_out"]["natural"]["percent"], row["verify"]["held_out"]["verified"]["percent"])
        for row in rows
    ]
    assert summary["hypervolume"] == pytest.approx(hypervolume(points) / 1e4, abs=1e-6)
    exported = sorted((tmp_path / "out" / "front").glob("*.yaml"))
    assert len(exported) == len(summary["front"]) >= 1
    config = load_config(exported[0])
    assert config.validation == 0 and config.method.alpha in (0.1, 0.5)
    assert run(path)["trials"] == 2, "nothing is done twice"


def test_a_dead_trial_is_taken_up_with_its_own_values(tmp_path):
    asked = sweep.load(write(tmp_path, trials=1, search={"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}}))
    tuner = sweep.Tuner(asked, tmp_path / "out", torch.device("cpu"))
    trial = tuner.study.ask()
    values = {key: trial.suggest_float(key, one.low, one.high, log=one.log) for key, one in asked.space.items()}
    assert set(values) == {"method.alpha", "optimizer.lr"}, "the loss's own search space and the file's"
    trial.set_user_attr("cell", asked.cell(values).key)
    (tmp_path / "out" / "cells" / asked.cell(values).key).mkdir(parents=True)  # and here its process died
    again = sweep.Tuner(asked, tmp_path / "out", torch.device("cpu"))
    again.run()
    (row,) = again.rows()
    assert row["searched"] == values
    assert len(again.finished()) == 1


def test_the_mean_as_the_only_objective_can_be_pruned(tmp_path):
    asked = sweep.load(write(tmp_path, trials=1, objective="mean"))
    tuner = sweep.Tuner(asked, tmp_path, torch.device("cpu"))
    tuner.run()
    (trial,) = tuner.study.trials
    assert list(trial.intermediate_values) == [1], "one value after the only epoch"
    assert trial.value == pytest.approx(sum(sweep.accuracies(tuner.rows()[0])) / 2)


def test_a_trial_that_fails_counts_and_says_why(tmp_path):
    asked = sweep.load(write(tmp_path, grid={"data": ["mnist"]}))
    tuner = sweep.Tuner(asked, tmp_path, torch.device("cpu"), tmp_path / "nowhere")
    tuner.run()
    assert "mnist" in tuner.finished()[0].user_attrs["error"] and not tuner.rows()


def test_the_test_set_cannot_be_asked(tmp_path):
    with pytest.raises(UserError, match="validation"):
        sweep.load(write(tmp_path, grid={"method.alpha": [0.1]}, validation=0))
    cell = sweep.load(write(tmp_path, verify={"bound": "ibp", "split": "test"})).cell({})
    assert "--split validation" in cell.commands[1]


def test_nothing_to_search_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing to search"):
        sweep.load(write(tmp_path, set={"method": "standard"}))


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_is_valid(path):
    asked = sweep.load(path)
    values = {key: options[0] for key, options in asked.grid.items()}
    values |= {key: limits.low for key, limits in asked.space.items()}
    assert asked.cell(values).resolved.validation > 0


@pytest.mark.parametrize("name", LOSSES.names())
def test_search_spaces_name_fields_and_valid_values(name):
    for field, limits in LOSSES[name].search_space.items():
        for end in (limits["low"], limits["high"]):
            assert getattr(LOSSES.build({"name": name, field: end}), field) == end
