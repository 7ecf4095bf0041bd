"""Rows of runs, and tables of rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from expressive_losses.errors import UserError
from expressive_losses.results import main, read_rows, row_of, table

ROOT = Path(__file__).parent.parent
SUMMARY = {
    "method": {"name": "mtl_ibp", "alpha": 0.2},
    "data": "digits",
    "model": {"name": "cnn_tiny"},
    "eps": "0.1",
    "seed": 1,
    "split": "test",
    "images": 360,
    "natural": 98.0,
    "adversarial": 95.0,
    "ibp": 90.0,
    "checkpoint": "x/model.pt",
}
ENVIRONMENT = {
    "command": [
        "/home/me/train.py",
        "--method",
        "mtl_ibp",
        "--out",
        "/secret/place",
        "--data-dir=/other",
        "--seed",
        "1",
    ],
    "time": "2026-01-01",
    "git": "abc",
    "device": "CPU x2",
    "threads": 1,
    "torch": "2",
    "auto_LiRPA": "0.3",
    "python": "3.11",
}


def write_run(folder, **changes):
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder


def test_a_row_has_the_command_without_the_places_of_one_machine(tmp_path):
    row = row_of(write_run(tmp_path / "a"))
    assert row["command"] == "python train.py --method mtl_ibp --seed 1"
    assert "checkpoint" not in row
    assert row["device"] == "CPU x2"


def test_table_has_mean_and_deviation_over_seeds(tmp_path):
    runs = [write_run(tmp_path / str(seed), seed=seed, natural=natural) for seed, natural in ((1, 97.0), (2, 99.0))]
    main(["rows", str(tmp_path / "rows.jsonl"), *map(str, runs)])
    line = table(read_rows(tmp_path / "rows.jsonl")).splitlines()[2]
    figures = "98.00 ± 1.41 | 95.00 ± 0.00 | 90.00 ± 0.00 | not run | 2"
    assert line == f"| digits | 0.1 | mtl_ibp 0.2 | cnn_tiny | {figures} |"


def verified(percent: float, images: int = 100, eps: str = "0.1") -> dict:
    return {"verify-cascade": {"images": images, "verified": {"percent": percent}, "eps": eps}}


@pytest.mark.parametrize(
    "seeds, figure",
    [
        ([verified(50.0), verified(60.0)], "55.00 ± 7.07 (of 100)"),
        ([verified(50.0), {}], "not run"),
        ([verified(50.0), verified(60.0, images=200)], "not run"),
        ([verified(50.0), verified(99.0, eps="0.01")], "not run"),
    ],
)
def test_a_line_is_of_one_question(tmp_path, seeds, figure):
    row = row_of(write_run(tmp_path / "run"))
    assert table([{**row, "verify": one} for one in seeds]).splitlines()[2].split(" | ")[7] == figure


@pytest.mark.parametrize("other", [{"dataset": "noise"}, {"split": "validation"}])
def test_a_line_is_of_one_data_set(tmp_path, other):
    """Verifications of other images lie beside those of the line, and come first by name."""
    own = {"images": 100, "verified": {"percent": 50.0}, "eps": "0.1", "dataset": "digits", "split": "test"}
    row = {**row_of(write_run(tmp_path / "run")), "verify": {"verify-cascade-a": own | other, "verify-cascade-b": own}}
    assert table([row]).splitlines()[2].split(" | ")[7] == "50.00 (of 100)"
    assert " | not run | " in table([{**row, "verify": {"verify-cascade-a": own | other}}])


def test_other_options_are_another_line(tmp_path):
    row = row_of(write_run(tmp_path / "run"))
    commands = [
        "train.py --config a.yaml --seed 1",
        "train.py --config a.yaml --seed 2 --quiet",
        "train.py --config b.yaml",
    ]
    lines = table([{**row, "command": command} for command in commands]).splitlines()[2:]
    assert [line.split(" | ")[-1] for line in lines] == ["2 |", "1 |"]


def test_an_unfinished_run_has_no_row(tmp_path):
    with pytest.raises(UserError, match="not a finished run"):
        row_of(tmp_path)


@pytest.mark.parametrize("arguments", [[], ["rows"], ["tables", "x"], ["rows", "only-a-file"]])
def test_bad_arguments(arguments):
    with pytest.raises(UserError, match="expected: rows"):
        main(arguments)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([], "expected: rows FILE RUN..., or table FILE..."),
        (["table", "nothere.jsonl"], "nothere.jsonl: no such file"),
        (["table", "times.jsonl"], "times.jsonl: its rows are not those of trainings"),
        (["rows", "rows.jsonl", "nothere"], "nothere: not a finished run (no summary.json)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, complaint):
    (tmp_path / "times.jsonl").write_text('{"seconds": 1.0}\n')
    command = [sys.executable, "-m", "expressive_losses.results", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {complaint}") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["times.jsonl"]


def test_help_says_what_there_is(capsys):
    main(["table", "--help"])
    assert "rows FILE RUN... writes" in capsys.readouterr().out
