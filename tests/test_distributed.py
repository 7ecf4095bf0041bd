"""Several processes train as one: the same weights to rounding, one writer, resume with another number of them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from shared_step import everything
from torch import nn

from expressive_losses import checkpoint, experiment
from expressive_losses.attacks.base import OfWholeBatch, uniform
from expressive_losses.bounds.statistics import _average_over_processes, share_statistics
from expressive_losses.config import load, parse_assignment
from expressive_losses.distributed import Part, part_of, processes, rank
from expressive_losses.errors import UserError
from expressive_losses.run import RunDirectory
from expressive_losses.trainer import Trainer
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
    """Every method, on a chain and a residual network: gradients, running statistics and logged terms agree to
    float64's rounding, parts of 5, 4 and 4. So do a batch's statistics, and a population's, of fewer or more batches
    than processes.
    """
    out = tmp_path / "gradients"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    subprocess.run(
        [*launch, str(ROOT / "tests" / "shared_step.py"), str(out)], check=True, env=ENVIRONMENT, timeout=300
    )
    shared, *others = (torch.load(f"{out}.{number}", weights_only=True) for number in range(3))
    alone = everything()
    assert shared.keys() == alone.keys()
    for name, tensors in alone.items():
        scale = max(float(tensor.abs().max()) for tensor in tensors)
        for number, (ours, theirs) in enumerate(zip(shared[name], tensors, strict=True)):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-9, atol=1e-11 * scale, msg=lambda text, name=name: name + text
            )
            assert all(torch.equal(other[name][number], ours) for other in others), f"{name}: not the same everywhere"


def test_two_processes_train_as_one(tmp_path):
    """MTL-IBP through warm-up, ramp and end, with BatchNorm, the regularisers and an attack with a random start."""
    subprocess.run(command(2, tmp_path / "two"), check=True, env=ENVIRONMENT, timeout=300)
    train_alone(tmp_path / "one")
    assert_close(tmp_path / "one", tmp_path / "two")
    rows = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 1, "one process writes"
    for ours, theirs in zip(*rows, strict=True):
        assert theirs["train"] == pytest.approx(ours["train"], rel=1e-3, abs=5e-3)


def test_processes_that_draw_other_weights_take_those_of_the_first(tmp_path, monkeypatch):
    """As on GPUs of two kinds: here every process has another seed for its network."""
    (tmp_path / "drawn.py").write_text(
        "import os, torch\n"
        "def small(shape, classes, **_):\n"
        "    torch.manual_seed(int(os.environ.get('RANK', '0')))\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(),\n"
        "                               torch.nn.Linear(16, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = ("model={name: 'drawn:small'}", "training.initialize=default")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    more = [f"--set={text}" for text in settings]
    subprocess.run(command(2, tmp_path / "two", *more), check=True, env=environment, timeout=300)
    train_alone(tmp_path / "one", *settings)
    assert_close(tmp_path / "one", tmp_path / "two")


def in_two_processes(script: str, folder: Path) -> Path:
    """Run a script of python under torchrun; it finds the path that is returned in ``written``."""
    file, written = folder / "script.py", folder / "written"
    head = """
        import os, sys, time, torch
        import torch.distributed as dist
        from pathlib import Path
        from expressive_losses.distributed import joined, rank
        from expressive_losses.errors import Interrupted, UserError
        written = Path(sys.argv[1])
    """
    file.write_text(textwrap.dedent(head) + textwrap.dedent(script))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, str(file), str(written)], check=True, env=ENVIRONMENT, timeout=300)
    return written


@pytest.mark.parametrize("end", ["pass", "raise Interrupted"])
def test_no_process_leaves_before_the_first_has_written(tmp_path, end):
    """One that does may abort, and torchrun then stops the one that writes."""
    script = f"""
        try:
            with joined(torch.device("cpu")):
                if rank() == 0:
                    time.sleep(1)
                    written.touch()
                {end}
        except Interrupted:
            pass
        assert written.exists()
    """
    assert in_two_processes(script, tmp_path).exists()


def test_a_process_that_fails_is_not_waited_for(tmp_path):
    """The other one says so in one line. (The first ends without an error code here: torchrun would stop the other.)"""
    script = """
        try:
            with joined(torch.device("cpu")):
                if rank() == 0:
                    raise ValueError
                dist.all_reduce(torch.zeros(1))
        except ValueError:
            os._exit(0)
        except UserError as error:
            written.write_text(str(error))
            os._exit(0)  # torch may abort as it is taken apart without the other
    """
    assert "another process ended" in in_two_processes(script, tmp_path).read_text()


def test_two_processes_train_a_residual_network_as_one(tmp_path):
    """With statistics recomputed over the training images after the epoch and for the averaged weights."""
    settings = (
        "model={name: resnet, width: 2, blocks: [1, 1], hidden: 16}", "training.bn_refresh=true",
        "training.average={kind: ema, decay: 0.5}", "training.bn_statistics=clean",
    )  # fmt: skip
    more = [f"--set={text}" for text in settings]
    subprocess.run(command(2, tmp_path / "two", *more), check=True, env=ENVIRONMENT, timeout=300)
    train_alone(tmp_path / "one", *settings)
    assert_close(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_layer_shared_by_one_process_is_torchs(momentum):
    """Outputs, statistics and running statistics over three batches, the cumulative average too."""
    shared, plain = (nn.Sequential(nn.BatchNorm2d(3, momentum=momentum)).double() for _ in range(2))
    for size in (5, 4, 2):
        x = torch.rand(size, 3, 2, 2, dtype=torch.float64)
        with share_statistics(shared) as statistics:
            torch.testing.assert_close(shared(x), plain(x))
        mean, variance = statistics["0"]
        torch.testing.assert_close(mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))
    for ours, theirs in zip(shared.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert "forward" not in vars(shared[0])


def test_processes_share_out_the_population(tmp_path, monkeypatch):
    """Each attacked batch after its clean one, the same whoever makes it; a single image at the end is left out."""
    settings = [parse_assignment(text) for text in (*SETTINGS, "training.batch_size=359")]
    network, train, held_out, _ = experiment.prepare(load(None, settings), torch.device("cpu"))
    run = RunDirectory(tmp_path)
    trainer = Trainer(load(None, settings), network, train, held_out, run, quiet=True)
    run.close()
    whole = list(trainer._population(0.1))
    assert [len(x) for x in whole] == [359] * 8
    assert len(train) == 4 * 359 + 1
    for number, mine in ((0, [0, 1, 6, 7]), (1, [2, 3]), (2, [4, 5])):
        monkeypatch.setattr("expressive_losses.distributed.processes", lambda: 3)
        monkeypatch.setattr("expressive_losses.distributed.rank", lambda number=number: number)
        for ours, index in zip(trainer._population(0.1), mine, strict=True):
            assert torch.equal(ours, whole[index])


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_ended_in_two_processes_and_resumed_in_one(tmp_path, end):
    """torchrun passes SIGTERM on: the state is saved inside an epoch. After SIGKILL that of the last epoch is there."""
    out, more = tmp_path / "part", ("--set=training.epochs=8",)
    process = subprocess.Popen(command(2, out, *more), env=ENVIRONMENT)
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(end)
    sent = time.time()
    process.wait()
    if end == signal.SIGTERM:
        assert (out / "checkpoint.pt").stat().st_mtime > sent
        assert not (out / "summary.json").exists()
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
    # else the new processes may find the addresses of those that are gone
    process = subprocess.Popen(launch, env={**ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
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
        (("training.batch_size=205",), "a batch of 2 images for 3 processes"),
    ],
)
def test_what_cannot_be_shared_exactly_is_refused(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr("expressive_losses.distributed.processes", lambda: 3)
    with pytest.raises(UserError, match=message):
        train_alone(tmp_path, *settings)


class Scaled(nn.BatchNorm2d):
    """BatchNorm that does something else besides."""

    def forward(self, x):
        return 2 * super().forward(x)


class Still(nn.BatchNorm2d):
    """BatchNorm that is always in eval mode."""

    def train(self, mode: bool = True):
        return super().train(False)


def test_batch_norm_in_eval_mode_is_refused(tmp_path, monkeypatch):
    """Its module keeps it there: in one process it takes no statistics."""
    monkeypatch.setattr("expressive_losses.distributed.processes", lambda: 3)
    monkeypatch.setattr("expressive_losses.models.resnet.nn.BatchNorm2d", Still)
    with pytest.raises(UserError, match=r"layer '1' is BatchNorm that its module keeps in eval mode"):
        train_alone(tmp_path, "model=resnet")


def test_batch_norm_that_no_image_passes_keeps_its_first_statistics():
    layer = nn.BatchNorm2d(2)
    _average_over_processes([layer])
    assert torch.equal(layer.running_mean, torch.zeros(2))
    assert torch.equal(layer.running_var, torch.ones(2))


def test_batch_norm_of_ones_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("expressive_losses.distributed.processes", lambda: 3)
    monkeypatch.setattr("expressive_losses.models.resnet.nn.BatchNorm2d", Scaled)
    with pytest.raises(UserError, match=r"layer '1' is BatchNorm with a forward of its own"):
        train_alone(tmp_path, "model=resnet")
