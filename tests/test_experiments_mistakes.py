"""Mistakes in the arguments of `experiments`, and folders that cannot be written: one line before anything is run."""

import os

import pytest
from experimenting import run, write

from expressive_losses.errors import UserError
from expressive_losses.experiments import grid
from expressive_losses.experiments.cli import main
from expressive_losses.experiments.spec import load


def test_seeds_are_whole_numbers_from_0(tmp_path):
    for text in ("-1", "1.5", "a"):
        with pytest.raises(UserError, match=f"--seeds {text}: expected whole numbers from 0"):
            run(write(tmp_path), "--seeds", text)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shard", "2/2"], "2/2"),
        (["--jobs", "0"], "at least 1"),
        (["--scale", "full", "--shard", "x"], "shard"),
        (["--scale", "ful"], "invalid choice: 'ful'"),
        (["--dry"], "unrecognized arguments: --dry; .* --help explains"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run(write(tmp_path), *arguments)


@pytest.mark.parametrize("option, before", [("--runs", True), ("--results", True), ("--results", False)])
@pytest.mark.parametrize("place", ["a file/x", "a file"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(tmp_path, capsys, option, before, place):
    """By ``run`` before it trains; by ``report``, ``adopt`` and ``polytope`` in one line too."""
    path, place = write(tmp_path), tmp_path / place
    (tmp_path / "a file").write_text("")
    if before:
        command = ["run", str(path), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    else:
        command = ["report", str(path)]
    with pytest.raises(UserError, match=f"{option}: cannot make the folder .*a file.*; choose another"):
        main([*command, option, str(place)])
    assert "done" not in capsys.readouterr().out and not list(tmp_path.glob("runs/cells/*"))


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: "results" not in str(path))
    with pytest.raises(UserError, match="--results: cannot write into the folder .*results"):
        run(write(tmp_path))


@pytest.mark.parametrize("command", ["adopt table.yaml --from run --runs file/x", "polytope --seeds 0 --results file"])
def test_other_commands_name_a_folder_that_cannot_be_written(tmp_path, monkeypatch, command):
    write(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot make the folder file"):
        main(command.split())


def test_a_document_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothere.md: cannot read the document: No such file"):
        main(["overview", str(write(tmp_path)), "--document", str(tmp_path / "nothere.md")])


def test_a_bad_file_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match="table.yaml.*verifi"):
        load(write(tmp_path, verifi={}))
    with pytest.raises(UserError, match="no config other.yaml"):
        grid.cells(load(write(tmp_path, entries=[{"config": "other.yaml"}])), "smoke")
