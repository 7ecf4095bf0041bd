"""verify.py: networks trained elsewhere."""

from __future__ import annotations

import pytest

from expressive_losses.cli import verify_main

FOREIGN = (
    "--model cnn_tiny --weights models/state.pt --model-set width=4 --model-set hidden=16 --dataset digits --eps 0.1"
)
CASES = [
    ("--model broken_syntax:make --weights models/state.pt --dataset digits --eps 0.1", "broken_syntax"),
    ("--model run --weights models/state.pt", "--weights"),
    ("--model run --classes 10", "--classes"),
    ("--model cnn_tinny --weights models/state.pt --dataset digits", "cnn_tinny"),
    ("--model cnn_tiny --weights models/state.pt", "--dataset is missing"),
    ("--model cnn_tiny --dataset digits", "--weights is missing"),
    (f"{FOREIGN.removesuffix(' --eps 0.1')}", "--eps is missing"),
    ("--model cnn_tiny --weights models/state.pt --dataset digits --eps 0.1", "do not fit"),
    ("--model cnn_tiny --weights models/state_list.pt --dataset digits --eps 0.1", "expected a state_dict"),
    ("--model cnn_tiny --weights models/with_code.pt --dataset digits --eps 0.1", "could run code"),
    ("--model cnn_tiny --weights models/empty.pt --dataset digits --eps 0.1", "empty.pt"),
    ("--model cnn_tiny --weights models/cut.pt --dataset digits --eps 0.1", "cut.pt"),
    ("--model cnn_tiny --weights nowhere --dataset digits --eps 0.1", "nowhere"),
    ("--model cnn_tiny --weights models/state.pt --dataset digits --eps 0.1 --model-set width", "key=value"),
    (f"{FOREIGN} --std 0", "std"),
    (f"{FOREIGN} --std nan", "--std"),
    (f"{FOREIGN} --shape 1,8", "--shape"),
    (f"{FOREIGN} --shape a,b,c", "--shape"),
    (f"{FOREIGN} --classes -2", "classes"),
    (f"{FOREIGN} --mean 0.1,0.2", "--mean"),
    ("--model models/rubbish.onnx --dataset digits --eps 0.1", "rubbish.onnx"),
    ("--model nowhere.onnx --dataset digits --eps 0.1", "nowhere.onnx"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line or "nothing" for line, _ in CASES])
def test_foreign(refuses_run, line, message):
    refuses_run(verify_main, line, message)
