"""Malformed input of every kind, through the real commands.

Each case must end with exit code 2 and one line on stderr that says what is wrong, without a traceback, and
without a file made or changed.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import warnings
from functools import partial

import pytest
from data_files import data_files
from folders import ledgers, run_directories, snapshot
from model_files import model_files
from texts import CONFIGS, MODULES, SMALL

from expressive_losses.cli import train_main


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a trained run and everything that is wrong with its neighbours."""
    world = tmp_path_factory.mktemp("world")
    for name in ("configs", "code", "data", "models", "ledgers", "runs"):
        (world / name).mkdir()
    for name, text in CONFIGS.items():
        (world / "configs" / f"{name}.yaml").write_text(text)
    (world / "configs" / "binary.yaml").write_bytes(bytes(range(256)))
    for name, text in MODULES.items():
        (world / "code" / f"{name}.py").write_text(text)
    (world / "file").write_text("precious")
    (world / "empty").mkdir()
    assert train_main(shlex.split(f"{SMALL} --out {world / 'run'}")) == 0
    data_files(world / "data")
    model_files(world / "models", world / "run")
    ledgers(world / "ledgers", world / "run")
    run_directories(world / "runs", world / "run")
    return world


def complaint(main, line: str, capsys) -> str:
    """Run a command that must fail as a user's mistake; return its one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(shlex.split(line))
    printed = capsys.readouterr()
    print(printed.err)
    assert code == 2, (code, printed.err[-2000:])
    assert printed.err.startswith("error: "), printed.err[-2000:]
    assert printed.err.count("\n") == 1 and printed.err.endswith("\n"), printed.err[-2000:]
    assert "Traceback" not in printed.err
    assert 20 < len(printed.err) < 1000, printed.err[:2000]
    assert not printed.out, printed.out
    return printed.err


@pytest.fixture
def refuses(world, capsys, monkeypatch):
    """A function that runs a command in the world, and checks how it is refused."""
    return partial(check, world, capsys, monkeypatch)


@pytest.fixture
def refuses_run(refuses):
    """The same for a command that would write into a folder: into a new one, unless the line names its own."""

    def in_new_folder(main, line: str, message: str) -> None:
        place = "" if "--out" in line else " --out fresh"
        refuses(main, line + place + " --quiet", message)

    return in_new_folder


def check(world, capsys, monkeypatch, main, line: str, message: str) -> None:
    """Check that a command ends with one line that holds the message, and that no file was made or changed."""
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(world / "code")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("EXPRESSIVE_LOSSES_DATA", raising=False)
    shutil.rmtree(world / "fresh", ignore_errors=True)
    before = snapshot(world)
    said = complaint(main, line, capsys)
    assert message in said, said
    after = snapshot(world)
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} == set()
