"""Tuning: Pareto front and hypervolume on literal points, resuming, mistakes, nothing of the test set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tuning import CONFIG, replace_training, run, searched, sweep, tuner_of, write

from expressive_losses import experiments
from expressive_losses.config import load as load_config
from expressive_losses.errors import Diverged, UserError
from expressive_losses.experiments import sweep_file, sweep_report
from expressive_losses.experiments.cli import CellsFailed, main
from expressive_losses.experiments.pareto import hypervolume, pareto_front
from expressive_losses.registry import LOSSES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def work(monkeypatch):
    return replace_training(monkeypatch)


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


def test_each_trial_says_how_it_ended(tmp_path, work, capsys):
    """Hours go by in a sweep: what it found so far, with the values, is on the screen."""
    _, effects = work
    path = write(tmp_path, grid={"method.alpha": [0.1, 0.5]})

    def diverge(folder):
        effects.clear()
        raise Diverged("the loss is not finite")

    effects.append(diverge)
    run(path)
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "[1 of 2] trial 0 (method.alpha 0.1): failed: the loss is not finite"
    assert second == "[2 of 2] trial 1 (method.alpha 0.5): 90.00 % natural, 80.00 % verified"


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
    asked = sweep_file.load(
        write(tmp_path, trials=1, search={"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}})
    )
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


def test_a_search_that_starts_again_does_not_repeat_its_values(tmp_path, work):
    """Also: the values of a trial depend on its number alone as long as they are drawn at random."""
    path = write(tmp_path, trials=2)
    tuner_of(path).run()
    write(tmp_path, trials=4)
    tuner = tuner_of(path)
    tuner.run()
    assert len(set(searched(tuner))) == 4
    (tmp_path / "other").mkdir()
    at_once = tuner_of(write(tmp_path / "other", trials=4))
    at_once.run()
    assert searched(at_once) == searched(tuner)


def test_whole_numbers_are_searched_as_such(tmp_path, work):
    ranges = {"training.batch_size": {"low": 20, "high": 23, "whole": True}}
    tuner = tuner_of(write(tmp_path, trials=8, search=ranges))
    tuner.run()
    tried = [row["searched"]["training.batch_size"] for row in tuner.rows()]
    assert len(tried) == 8 and {type(value) for value in tried} == {int} and set(tried) <= {20, 21, 22, 23}


def test_trials_from_before_there_were_whole_numbers_still_count(tmp_path):
    asked = sweep_file.load(write(tmp_path)).asked
    assert asked["search"] == {"method.alpha": {"low": 0.001, "high": 1.0, "log": True}}


def test_points_that_are_the_same_network_are_one(tmp_path, work):
    tuner = tuner_of(write(tmp_path, grid={"method.alpha": [0.1, 0.1], "eps.target": ["0.05"]}))
    tuner.run()
    assert work[0] == [0.1] and tuner.sweep.size == 1


FORMER = {"search": {"optimizer.lr": {"low": 1e-3, "high": 1e-2}}, "validation": 0.2}


@pytest.mark.parametrize(
    "named, values",
    [
        ("config", {"set": {"training.epochs": 2}}),
        ("config, validation", {"set": {"optimizer.lr": 0.01}, "validation": 0.1}),
        ("verify", {"verify": {"bound": "crown"}}),
        ("objective", {"objective": "mean"}),
        ("search", {"search": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}),
        ("search, grid", {"search": {}, "grid": {"method.alpha": [0.1]}}),
    ],
)
def test_trials_of_a_sweep_that_asked_for_something_else_are_refused(tmp_path, work, named, values):
    tuner_of(write(tmp_path, trials=1, **FORMER)).run()
    changed = tuner_of(write(tmp_path, trials=1, **{**FORMER, **values}))
    with pytest.raises(UserError, match=f"before {named} changed; .*rename the sweep file or choose another --out"):
        changed.run()
    more = tuner_of(write(tmp_path, trials=2, **FORMER))
    more.run()
    assert len(more.rows()) == 2, "more trials are more of the same"


@pytest.mark.parametrize("url", ["nonsense", "mysql+nothing://host/study", "sqlite:////nowhere/study.db"])
def test_a_database_that_cannot_be_used_is_one_line(tmp_path, url):
    with pytest.raises(UserError, match="^--storage: no study can be kept there: [^\n]+$"):
        tuner_of(write(tmp_path), storage=url).run()


def test_a_journal_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.log").write_text("not a journal\n")
    with pytest.raises(UserError, match="^.*study.log: no study can be kept there: [^\n]+$"):
        tuner_of(write(tmp_path)).run()


def test_a_sweep_file_may_change_before_its_first_trial(tmp_path, work):
    tuner_of(write(tmp_path, trials=1, **FORMER)).study  # noqa: B018
    tuner_of(write(tmp_path, trials=1, **{**FORMER, "validation": 0.1})).run()


def test_what_is_exported_is_what_the_trial_ran(tmp_path, work):
    path = write(tmp_path, grid={"method.alpha": [0.1]})
    tuner = tuner_of(path)
    tuner.run()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "training": {"epochs": 7}}))
    sweep_report.write(tuner)
    exported = load_config(next((tmp_path / "out" / "front").glob("*.yaml")))
    assert (exported.training.epochs, exported.method.alpha, exported.validation) == (1, 0.1, 0)


def test_without_optuna_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("sweep", "sweep_report"):
        monkeypatch.delitem(sys.modules, f"expressive_losses.experiments.{name}", raising=False)
        monkeypatch.delattr(experiments, name, raising=False)
    with pytest.raises(UserError, match="pip install 'optuna"):
        main(["sweep", str(write(tmp_path))])


@pytest.mark.parametrize("installed", [True, False])
def test_the_smoke_script_says_that_tuning_was_skipped(tmp_path, installed):
    """It runs what `make` installed, and ends well without Optuna."""
    python, script = tmp_path / ".venv" / "bin" / "python", tmp_path / "scripts" / "smoke.sh"
    for path in (python, script):
        path.parent.mkdir(parents=True)
    script.write_text((ROOT / "scripts" / "smoke.sh").read_text())
    python.write_text(f'#!/bin/sh\n[ "$1" != -c ] || exit {0 if installed else 1}\necho "ran $3"\n')
    python.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    said = subprocess.run(["bash", script], env=environment, check=True, capture_output=True, text=True).stdout
    last = "ran sweep" if installed else "tuning was skipped: Optuna is not installed"
    assert said.splitlines() == ["ran run", "ran polytope", last]


@pytest.mark.parametrize("all_of_them", [[], ["all"]])
def test_the_smoke_script_only_lists_at_a_dry_run(tmp_path, all_of_them):
    python, script = tmp_path / ".venv" / "bin" / "python", tmp_path / "scripts" / "smoke.sh"
    for path in (python, script):
        path.parent.mkdir(parents=True)
    script.write_text((ROOT / "scripts" / "smoke.sh").read_text())
    python.write_text('#!/bin/bash\n[ "$1" = -c ] || echo "ran $3 ${@: -1}"\n')
    python.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    command = ["bash", script, *all_of_them, "--dry-run"]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said[:2] == ["ran run --dry-run", "ran polytope --dry-run"]
    assert said[2:] == ["python -m expressive_losses.experiments sweep scripts/sweeps/smoke.yaml"]


def test_the_mean_as_the_only_objective_can_be_pruned(tmp_path):
    asked = sweep_file.load(write(tmp_path, trials=1, objective="mean"))
    tuner = sweep.Tuner(asked, tmp_path, torch.device("cpu"))
    tuner.run()
    (trial,) = tuner.study.trials
    assert list(trial.intermediate_values) == [1], "one value after the only epoch"
    assert trial.value == pytest.approx(sum(sweep.accuracies(tuner.rows()[0])) / 2)


def test_a_trial_that_fails_counts_and_says_why(tmp_path):
    asked = sweep_file.load(write(tmp_path, grid={"data": ["mnist"]}))
    tuner = sweep.Tuner(asked, tmp_path, torch.device("cpu"), tmp_path / "nowhere")
    tuner.run()
    assert "mnist" in tuner.finished()[0].user_attrs["error"] and not tuner.rows()
    assert sweep_report.write(tuner)["failed"] == 1


def test_a_mistake_is_one_line_and_its_trials_are_done_when_it_is_mended(tmp_path, monkeypatch):
    """Without the data every trial fails; what diverges is a result of its own, and stays."""
    path = write(tmp_path, grid={"method.alpha": [0.1, 0.5]})
    complete, missing = sweep.complete_cell, True

    def sometimes(cell, *arguments):
        if cell.resolved.method.alpha == 0.5:
            raise Diverged("training diverged")
        if missing:
            raise UserError("no data: type this")
        return complete(cell, *arguments)

    monkeypatch.setattr(sweep, "complete_cell", sometimes)
    with pytest.raises(CellsFailed, match="1 of the trials failed, the same command tries anew: no data: type this"):
        run(path)
    missing = False
    summary = run(path)
    assert (summary["trials"], summary["pruned or diverged"], summary["failed"]) == (1, 1, 0)
    tuner = sweep.Tuner(sweep_file.load(path), tmp_path / "out", torch.device("cpu"))
    assert sorted(trial.state.name for trial in tuner.study.trials) == ["COMPLETE", "FAIL", "FAIL"], (
        "what diverged is not tried again"
    )


@pytest.mark.parametrize(
    "values, again",
    [({"grid": {"method.alpha": [0.1]}}, "tries anew"), ({"trials": 1}, "tries other values in their place")],
)
def test_a_failed_trial_says_what_the_same_command_does(tmp_path, work, values, again):
    def fail(folder):
        raise UserError("no data")

    work[1].append(fail)
    with pytest.raises(CellsFailed, match=f"^1 of the trials failed, the same command {again}: no data$"):
        run(write(tmp_path, **values))


@pytest.mark.parametrize("noted", [["error"], ["error", "diverged"]])
def test_a_trial_killed_before_its_failure_is_told_may_still_succeed(tmp_path, work, noted):
    tuner = tuner_of(write(tmp_path, grid={"method.alpha": [0.1]}))
    claim = tuner._claim()
    for key in noted:
        claim.trial.set_user_attr(key, "so it seemed")
    claim.lock.release()  # and here its process died
    assert not tuner.failed() and not tuner.finished()
    tuner.run()
    summary = sweep_report.write(tuner)
    assert (summary["trials"], summary["pruned or diverged"], summary["failed"]) == (1, 0, 0)


def test_the_test_set_cannot_be_asked(tmp_path):
    with pytest.raises(UserError, match="validation"):
        sweep_file.load(write(tmp_path, grid={"method.alpha": [0.1]}, validation=0))
    cell = sweep_file.load(write(tmp_path, verify={"bound": "ibp", "split": "test"})).cell({})
    assert "--split validation" in cell.commands[1]


def test_a_mistake_in_what_verifies_is_found_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match=r"tune\.yaml: verify: unknown bound 'ipb'"):
        sweep_file.load(write(tmp_path, verify={"bound": "ipb"}))


def test_a_radius_may_be_a_number(tmp_path):
    asked = sweep_file.load(write(tmp_path, verify={"bound": "ibp", "eps": 0.05}))
    assert "--eps 0.05" in asked.cell({}).commands[1]
    with pytest.raises(UserError, match=r"tune\.yaml: verify.eps: radii are in pixel units, from 0 to 1, got 8;"):
        sweep_file.load(write(tmp_path, verify={"bound": "ibp", "eps": 8}))


def test_a_sweep_of_which_all_trials_failed_by_a_mistake_may_be_changed(tmp_path):
    values = {"grid": {"data": ["mnist"]}}
    sweep.Tuner(sweep_file.load(write(tmp_path, **values)), tmp_path, torch.device("cpu"), tmp_path / "nowhere").run()
    mended = {"grid": {"method.alpha": [0.5]}}
    tuner = sweep.Tuner(sweep_file.load(write(tmp_path, **mended)), tmp_path, torch.device("cpu"))
    tuner.run()
    assert [row["searched"] for row in tuner.rows()] == [{"method.alpha": 0.5}]


def test_nothing_to_search_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing to search"):
        sweep_file.load(write(tmp_path, set={"method": "standard"}))


@pytest.mark.parametrize(
    ("values", "mistake"),
    [
        (
            {"search": {"optimizer.lr": {"low": 0.01, "high": 0.001}}},
            "optimizer.lr: low 0.01 is above high 0.001",
        ),
        (
            {"search": {"optimizer.lr": {"low": 0, "high": 0.1, "log": True}}},
            "logarithmic scale needs one above 0",
        ),
        (
            {"search": {"optimizer.lr": [0.1, 0.2]}},
            r"optimizer.lr: expected keys of its own \(low, high, log, whole\), got",
        ),
        ({"search": {"optimizer.lrr": {"low": 0.1, "high": 0.2}}}, "search.optimizer.lrr: .*did you mean 'lr'"),
        ({"search": {"method.alpha": {"low": 0.1, "high": 2}}}, "search.method.alpha: .*less than or equal to 1"),
        ({"search": {"training.batch_size": {"low": 64, "high": 256}}}, "say whole: true"),
        ({"search": {"training.batch_size": {"low": 64, "high": 99.5, "whole": True}}}, "must be whole numbers"),
        ({"grid": {"method.alpha": []}}, "grid.method.alpha: expected values, got none"),
        (
            {"grid": {"method.alpha": [0.1]}, "search": {"optimizer.lr": {"low": 0.001, "high": 0.01}}},
            "search and grid: a grid is in place of a search",
        ),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused_before_it_begins(tmp_path, values, mistake):
    """The first two left a trial that ran for ever, the last was a grid without what is searched."""
    with pytest.raises(UserError, match=rf"tune\.yaml: {mistake}" if "grid" in values else mistake):
        sweep_file.load(write(tmp_path, **values))


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_is_valid(path):
    asked = sweep_file.load(path)
    values = {key: options[0] for key, options in asked.grid.items()}
    values |= {key: limits.low for key, limits in asked.space.items()}
    assert asked.cell(values).resolved.validation > 0


@pytest.mark.parametrize("name", LOSSES.names())
def test_search_spaces_name_fields_and_valid_values(name):
    for field, limits in LOSSES[name].search_space.items():
        for end in (limits["low"], limits["high"]):
            assert getattr(LOSSES.build({"name": name, field: end}), field) == end
