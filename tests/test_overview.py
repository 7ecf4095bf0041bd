"""What the list of all tables says of each: cost, and what its lines have in place of the paper's setting."""

import json

from experimenting import made_up, write

from expressive_losses.experiments import grid
from expressive_losses.experiments.overview import overview
from expressive_losses.experiments.rows import by_command
from expressive_losses.experiments.spec import load


def listed(path, scale: str, **more) -> str:
    """The overview of one experiment, whose cells of a scale all have a row; equal cells share it."""
    file = path.parent / "results" / scale / path.parent.name / "table.jsonl"
    file.parent.mkdir(parents=True)
    rows = [{**made_up(cell, 50.0), "device": "CPU", **more} for cell in grid.cells(load(path), scale)]
    for row in rows:
        row["verify"]["ibp"]["seconds"] = 1.0
    file.write_text("".join(json.dumps(row) + "\n" for row in by_command(rows).values()))
    return overview([path], path.parent / "results")


def test_the_row_of_several_cells_costs_once(tmp_path):
    """Two lines of one network, which the scale gives both of them: 10 s of training and 1 s of verification."""
    entries = [{"config": "small.yaml", "labels": {"method": label}} for label in "AB"]
    text = listed(write(tmp_path, entries=entries, lines=["method"]), "smoke", training_seconds=10.0)
    assert "[2 of 2 cells]" in text and "11 s (CPU)" in text


def test_lines_that_the_paper_does_not_have_are_no_part_of_what_all_lines_have(tmp_path):
    entries = [{"config": "small.yaml", "labels": {"method": label}, "published": {"natural": 90.0}} for label in "ABC"]
    entries[2]["scales"] = ["cpu"]
    path = write(tmp_path, entries=entries, lines=["method"], scales={"cpu": {"set": {"training.batch_size": 7}}})
    text = listed(path, "cpu", training_seconds=1.0)
    assert "cpu scale. In place of the paper's, in every line that was run and is in the paper: batches of 7.\n" in text
