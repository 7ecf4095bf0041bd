"""train.py: networks of one's own."""

from __future__ import annotations

import pytest

from expressive_losses.cli import train_main

CASES = [
    ("--model no.such:thing", "no.such"),
    ("--model nets:", "nets:"),
    ("--model :plain", ":plain"),
    ("--model nets:absent", "absent"),
    ("--model broken_syntax:make", "broken_syntax"),
    ("--model raises:make", "boom"),
    ("--model exits:make", "exits"),
    ("--model nets:number", "expected a function"),
    ("--model nets:nothing", "torch.nn.Module"),
    ("--model nets:crashes", "my bug"),
    ("--model nets:narrow", "nn.Linear(..., 10)"),
    ("--model nets:dropout", "dropout"),
    ("--model nets:needs", "important"),
    ("--model nets:plain --set model.depth=3", "depth"),
    ("--model nets:plain --set model.hidden=-1", "nets:plain"),
    ("--model nets:plain --set model.hidden=many", "nets:plain"),
    ("--model nets:colour", "does not take images of shape (1, 8, 8)"),
    ("--model nets:nan", "not finite"),
    ("--model nets:tuple_", "one tensor"),
    ("--model nets:fails_on_call", "missing"),
    ("--model nets:frozen", "no parameters to train"),
    ("--model nets:unlearnt", "nets:unlearnt"),
    ("--model nets:half", "float32"),
    ("--model nets:odd", "cannot bound"),
    ("--model dm_medium", "too small"),
    ("--model resnet --set model.width=0", "width"),
    ("--model nets:overlapping --method crown_ibp", "auto_LiRPA cannot bound this network by crown_ibp"),
    ("--model nets:over_rows --method crown_ibp", "auto_LiRPA cannot bound this network"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_modules(refuses_run, line, message):
    refuses_run(train_main, line, message)
