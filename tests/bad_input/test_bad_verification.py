"""verify.py: command line."""

from __future__ import annotations

import pytest

from expressive_losses.cli import verify_main

CASES = [
    ("", "--model is missing"),
    ("--model nowhere.pt", "cannot read the checkpoint"),
    ("--model empty", "cannot read the checkpoint"),
    ("--model file", "not a checkpoint"),
    ("--model run --bound crwn", "did you mean 'crown'"),
    ("--model run --bound ''", "expected names such as crown"),
    ("--model run --bound ibp,ibp", "twice"),
    ("--model run --bound clean:", "clean:"),
    ("--model run --eps 2", "did you mean 2/255"),
    ("--model run --eps=-1/255", "from 0 to 1"),
    ("--model run --eps -1/255", "--eps"),
    ("--model run --eps much", "a fraction"),
    ("--model run --first 0", "--first"),
    ("--model run --first -2", "--first"),
    ("--model run --first some", "--first"),
    ("--model run --batch-size 0", "--batch-size"),
    ("--model run --batch-size huge", "--batch-size"),
    ("--model run --dtype float16", "--dtype"),
    ("--model run --tolerance small", "--tolerance"),
    ("--model run --tolerance -1", "tolerance"),
    ("--model run --tolerance nan", "tolerance"),
    ("--model run --device gpu9", "--device gpu9"),
    ("--model run --split training", "--split"),
    ("--model run --split validation", "without a validation split"),
    ("--model run --shard 4/4", "shard"),
    ("--model run --shard 1", "shard"),
    ("--model run --shard a/b", "shard"),
    ("--model run --set restarts=3", "stage.key=value"),
    ("--model run --set pgd.restart=3", "did you mean 'restarts'"),
    ("--model run --set pgd.restarts=none", "restarts"),
    ("--model run --set pgd.steps=0", "steps"),
    ("--model run --bound ibp --set crown.tolerance=1", "does not run"),
    ("--model run --dataset mnits", "did you mean 'mnist'"),
    ("--model run --dataset mnist --data-dir nowhere", "let train.py fetch it: --set data.download=true"),
    ("--model run --dataset tensors", "data.path"),
    ("--model run --bound ibp --budget -1", "budget: expected seconds >= 0"),
    ("--model run --bound ibp --budget nan", "budget"),
    ("--model run --bound ibp --radius --report", "--report is about a run without --radius"),
    ("--model run --bound ibp --seed -1", "seed: expected at least 0"),
    ("--model run --bound bab --set bab.timeout=0", "timeout"),
    ("--model run --bound bab --set bab.timeout=-3", "timeout"),
    ("--model run --bound ibp --out file", "file: cannot write"),
    ("--model run --bound ibp --out file/below", "cannot write"),
    ("--model run --bound ibp --radius --out file", "file: cannot write"),
    ("--model run --budget -1", "budget"),
    ("--model run --budget nan", "budget"),
    ("--model run --seed -1", "seed"),
    ("--model run --bound ibp --out file/inside", "file"),
    ("--model run --bound ibp --out /proc/nowhere", "/proc/nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line or "nothing" for line, _ in CASES])
def test_verification(refuses_run, line, message):
    refuses_run(verify_main, line, message)
