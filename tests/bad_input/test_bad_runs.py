"""train.py: where it is written, and what is there already."""

from __future__ import annotations

import pytest
from texts import SMALL

from expressive_losses.cli import train_main

CASES = [
    ("--out file", "file"),
    ("--out file/inside", "file"),
    ("--out /proc/nowhere", "/proc/nowhere"),
    (f"--out run {SMALL}", "add --resume"),
    ("--out run --resume --epochs 3", "another config"),
    (f"--out runs/both_cut --resume {SMALL}", "cut short"),
    (f"--out runs/newer --resume {SMALL}", "newer"),
    (f"--out runs/no_training --resume {SMALL}", "not a state of training"),
    (f"--out runs/training_text --resume {SMALL}", "not a state of training"),
    (f"--out runs/optimizer --resume {SMALL}", "not a state of training"),
    (f"--out runs/other_step --resume {SMALL}", "not a state of training"),
    (f"--out runs/wider --resume {SMALL}", "do not fit"),
    (f"--out runs/metrics --resume {SMALL}", "line 2"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_runs(refuses_run, line, message):
    refuses_run(train_main, line, message)
