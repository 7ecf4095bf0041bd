"""Several processes train as one: the same weights to rounding, one writer, resume with another number of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from shared_step import everything

from expressive_losses import checkpoint, experiment
from expressive_losses.attacks.base import OfWholeBatch, uniform
from expressive_losses.config import load, parse_assignment
from expressive_losses.distributed import Part, part_of, processes, rank
from expressive_losses.errors import UserError
from expressive_losses.types import Box

ROOT = Path(__file__).parent.parent
#: SGD: Adam would turn the rounding of a gradient near 0 into a step of full length.
SETTINGS = (
    "training.epochs=1", "model.width=4", "model.hidden=16", "training.batch_size=256", "training.l1=1e-4",
    "eps.schedule={name: linear, warmup: 0.3, length: 0.4}", "optimizer={name: sgd, lr: 0.01}",
)  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(count: int, out: Path, *more: str) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    options = ["--quiet", "--device=cpu", f"--out={out}", *(f"--set={text}" for text in SETTINGS), *more]
    return [*launch, str(ROOT / "train.py"), *options]


def train_alone(out: Path, *more: str):
    config = load(None, [parse_assignment(text) for text in (*SETTINGS, *more)])
    return experiment.train(config, out, torch.device("cpu"), quiet=True)


def assert_close(ours: Path, theirs: Path, tolerance: float = 2e-4):
    """Weights and running statistics differ by what float32 sums in another order do."""
    first, second = (checkpoint.read(folder / "model.pt")["weights"] for folder in (ours, theirs))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance)


def test_three_processes_take_the_step_of_one(tmp_path):
    """Every method: gradients, running statistics and logged terms agree to float64's rounding; parts of 5, 4 and 4."""
    out = tmp_path / "gradients.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    subprocess.run(
        [*launch, str(ROOT / "tests" / "shared_step.py"), str(out)], check=True, env=ENVIRONMENT, timeout=300
    )
    shared, alone = torch.load(out, weights_only=True), everything()
    assert shared.keys() == alone.keys()
    for name, tensors in alone.items():
        scale = max(float(tensor.abs().max()) for tensor in tensors)
        for ours, theirs in zip(shared[name], tensors, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-9, atol=1e-11 * scale, msg=lambda text, name=name: name + text
            )


def test_two_processes_train_as_one(tmp_path):
    """MTL-IBP through warm-up, ramp and end, with BatchNorm, the regularisers and an attack with a random start."""
    subprocess.run(command(2, tmp_path / "two"), check=True, env=ENVIRONMENT, timeout=300)
    train_alone(tmp_path / "one")
    assert_close(tmp_path / "one", tmp_path / "two")
    rows = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 1, "one process writes"
    for ours, theirs in zip(*rows, strict=True):
        assert theirs["train"] == pytest.approx(ours["train"], rel=1e-3, abs=5e-3)


@pytest.mark.slow
def test_killed_in_two_processes_and_resumed_in_one(tmp_path):
    out, more = tmp_path / "part", ("--set=training.epochs=8",)
    process = subprocess.Popen(command(2, out, *more), env=ENVIRONMENT)
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)  # its workers notice and end
    single = [sys.executable, str(ROOT / "train.py"), *command(1, out, *more, "--resume")[6:]]
    subprocess.run(single, check=True, env=ENVIRONMENT)
    train_alone(tmp_path / "whole", "training.epochs=8")
    assert_close(tmp_path / "whole", out, 2e-3)


@pytest.mark.slow
def test_torchrun_restarts_the_processes_when_one_is_killed(tmp_path):
    out, more = tmp_path / "run", ("--set=training.epochs=8", "--resume")
    launch = command(2, out, *more)
    launch.insert(4, "--max-restarts=1")
    process = subprocess.Popen(launch, env=ENVIRONMENT)
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    assert process.wait(timeout=600) == 0
    assert json.loads((out / "summary.json").read_text())["epochs"] == 8


def test_parts_cover_the_batch_evenly(monkeypatch):
    monkeypatch.setattr("expressive_losses.distributed.processes", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr("expressive_losses.distributed.rank", lambda number=number: number)
        parts.append(part_of(256))
    assert parts == [Part(0, 86, 256, 3), Part(86, 171, 256, 3), Part(171, 256, 256, 3)]


def test_noise_of_the_parts_is_the_noise_of_the_whole():
    box = Box.around(torch.full((6, 1, 2, 2), 0.5), 0.2)
    whole = uniform(box, torch.Generator().manual_seed(3))
    parts = [
        uniform(box[slice(a, b)], OfWholeBatch(torch.Generator().manual_seed(3), a, b, 6)) for a, b in ((0, 4), (4, 6))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_alone_nothing_is_shared():
    assert (processes(), rank(), part_of(10)) == (1, 0, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("training.accumulate=2", "training.bn_statistics=clean_frozen"), "accumulate: several processes share"),
        (("model=resnet",), "known on plain chains of layers only"),
        (("training.batch_size=205",), "a batch of 2 images for 3 processes"),
    ],
)
def test_what_cannot_be_shared_exactly_is_refused(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr("expressive_losses.distributed.processes", lambda: 3)
    with pytest.raises(UserError, match=message):
        train_alone(tmp_path, *settings)
