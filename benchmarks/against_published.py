"""Training time and memory beside the published Expressive Losses code. JSON rows on stdout.

    git clone https://github.com/alessandrodepalma/expressive-losses published
    python benchmarks/against_published.py published --network cnn_small --batch-size 256 --data-dir data

Nothing of the published code is in this repository: its folder is the first argument, and its own functions (data
loader, ``train_or_test``, attack, bounds, regulariser, optimiser) are imported from there and called as its ``main``
calls them. Both train with MTL-IBP on MNIST at eps 0.3, one step of attack, the same network, batch, regularisers and
radius; both on the same auto_LiRPA, torch and number of threads. Two processes take turns of ``--steps`` steps, data
loading and metrics included, each as its own train.py would run; ``ratio`` is the median over the turns of ours :
published, ``cpu_ratio`` the same of processor time, which other work on the machine disturbs less. Memory is the peak
of each process, and that peak less what it held before it built its network ("added").
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import json
import os
import sys
import tempfile
import types
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._dynamo  # the published code has loaded it when measuring begins, ours has not: 48 MiB of library
from measuring import Worker, circumstances, in_turn, ratio, resident_mib, work_for

from expressive_losses import config as configs
from expressive_losses import experiment
from expressive_losses.allocator import keep_freed_memory
from expressive_losses.bounds import compat
from expressive_losses.data.batches import Batches
from expressive_losses.data.torchvision_compat import load_torchvision
from expressive_losses.registry import MODELS
from expressive_losses.run import RunDirectory
from expressive_losses.trainer import Trainer

#: The ramp of the quick recipes, which both sides train with: epochs 1 to 4 of 8.
RAMP, EPOCHS, SEED, EPS = 4, 8, 100, 0.3
PHASES = {"ramp": 2, "after": 5}  # and an epoch of each, counted from 0
PUBLISHED_NETWORKS = {"cnn_small": "cnn_small_bn", "cnn7": "cnn_7layer_bn2"}


def main() -> None:
    """Print one row for each phase, or be one side."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        answers, sys.stdout = sys.stdout, sys.stderr  # the published code prints
        side = SIDES[options.side](options)
        work_for(answers, side.steps, side.before_mib)
        return
    workers = {name: Worker([*sys.argv, "--side", name]) for name in SIDES}
    found = {
        phase: in_turn(workers, options.rounds, epoch=epoch, count=options.steps) for phase, epoch in PHASES.items()
    }
    for worker in workers.values():
        worker.close()
    about = {"network": options.network, "batch_size": options.batch_size, "method": "mtl_ibp", "seed": SEED}
    images = options.batch_size * options.steps * options.rounds
    for phase, answers in found.items():
        row = {**about, "phase": phase, "rounds": options.rounds, "images": images, **figures(answers, options.steps)}
        print(json.dumps({**row, **circumstances()}), flush=True)


def figures(answers: dict[str, list[dict[str, float]]], steps: int) -> dict[str, float]:
    """Return time a step and memory of both sides, and the ratios ours : published."""
    row = {}
    for name, key in (("", "seconds"), ("cpu_", "cpu_seconds")):
        taken = {side: [answer[key] for answer in given] for side, given in answers.items()}
        row |= {f"{side}_{name}ms": round(1000 * median(each) / steps, 2) for side, each in taken.items()}
        row[f"{name}ratio"] = round(ratio(taken["ours"], taken["published"]), 3)
    last = {side: given[-1] for side, given in answers.items()}
    peak = {side: given["peak_mib"] for side, given in last.items()}
    added = {side: given["peak_mib"] - given["before_mib"] for side, given in last.items()}
    for name, memory in (("peak", peak), ("added", added)):
        row |= {f"{side}_{name}_mib": round(value) for side, value in memory.items()}
        row[f"{name}_ratio"] = round(memory["ours"] / memory["published"], 3)
    return row


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("checkout", type=lambda text: Path(text).resolve(), help="a checkout of the published code")
    found.add_argument("--network", choices=list(PUBLISHED_NETWORKS), default="cnn_small")
    found.add_argument("--batch-size", type=int, default=256)
    found.add_argument("--steps", type=int, default=20, help="of a turn")
    found.add_argument("--rounds", type=int, default=5, help="turns of each side")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument(
        "--data-dir", type=lambda text: Path(text).resolve(), required=True, help="the folder that holds MNIST/raw"
    )
    found.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    return found


class Ours:
    """This package, through the trainer's own step."""

    def __init__(self, options: argparse.Namespace) -> None:
        keep_freed_memory()  # as train.py does
        recipe = Path(__file__).parents[1] / "configs/quick/mnist_0.3/mtl_ibp.yaml"
        assignments = (f"model={options.network}", f"training.batch_size={options.batch_size}")
        config = configs.load(recipe, [configs.parse_assignment(text) for text in assignments])
        train, test, _ = experiment.load_data(config, options.data_dir)
        self.before_mib = resident_mib()
        run = RunDirectory(Path(tempfile.mkdtemp()))
        torch.manual_seed(SEED)
        network = experiment.build_network(config, train)
        self.trainer = Trainer(config, network, Batches(train), Batches(test), run, quiet=True)
        run.close()

    def steps(self, epoch: int, count: int) -> None:
        """Do the first ``count`` steps of an epoch, with its metrics."""
        trainer = self.trainer
        trainer.step = epoch * trainer.steps_per_epoch
        order = trainer.train.epoch_order(SEED, epoch)
        for index in range(count):
            indices = trainer.train.order_of_step(order, index, trainer.config.training.batch_size)
            trainer._add(trainer.train_step(indices, trainer.radii(trainer.step)))
            trainer.step += 1
        trainer._means()
        trainer.totals, trainer.counts = {}, {}


@dataclass
class FirstBatches:
    """A data loader that ends after so many batches, and else is the one it wraps."""

    loader: Any
    count: int = 0
    attributes: tuple[str, ...] = field(default=("mean", "std", "data_max", "data_min", "dataset"), init=False)

    def __post_init__(self) -> None:
        for name in self.attributes:
            setattr(self, name, getattr(self.loader, name))

    def __iter__(self):
        return itertools.islice(iter(self.loader), self.count)

    def __len__(self) -> int:
        return len(self.loader)


class Published:
    """The published code, through its own ``train_or_test``."""

    def __init__(self, options: argparse.Namespace) -> None:
        with silent(), self.working_folder(options):
            self.code = code = import_published(options)
            args, config = code.args, code.load_config(code.args.config)
            dummy, train, _ = code.load_data(args, config["data"], options.batch_size, options.batch_size)
            self.before_mib = resident_mib()
            code.set_seed(SEED)
            self.network, *_ = code.prepare_model(args, code.logger, config)
            self.network.train()
            self.bounded = code.BoundedModule(
                self.network, dummy, bound_opts=config["bound_params"]["bound_opts"], device="cpu"
            )
            code.manual_init(args, self.network, self.bounded, train)
            self.optimizer = code.get_optimizer(args, list(self.network.parameters()), None)
            self.scheduler = code.get_eps_scheduler(args, EPS, train)
            self.batches = FirstBatches(train)

    def steps(self, epoch: int, count: int) -> None:
        """Do the first ``count`` steps of an epoch, with its metrics."""
        self.scheduler.train()
        self.scheduler.epoch = epoch  # an epoch begins by adding 1
        self.batches.count = count
        with silent():
            self.code.train_or_test(self.bounded, self.network, epoch + 1, self.batches, self.scheduler, self.optimizer)

    @staticmethod
    @contextlib.contextmanager
    def working_folder(options: argparse.Namespace) -> Iterator[None]:
        """Be in a folder that has what the published code looks for in the one that it runs in."""
        place = Path.cwd()
        targets = {"config": options.checkout / "config", "data": options.data_dir}
        with tempfile.TemporaryDirectory() as folder:
            for name, target in targets.items():
                (Path(folder) / name).symlink_to(target)
            (Path(folder) / "model").mkdir()
            os.chdir(folder)
            try:
                yield
            finally:
                os.chdir(place)


def import_published(options: argparse.Namespace) -> types.ModuleType:
    """Import the published train.py, which reads its command line at import.

    It gets stubs of what this machine may lack (wandb, six), and the small network, which it does not have.
    """
    compat.load()
    load_torchvision()
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))
    moves = types.ModuleType("six.moves")
    moves.urllib = urllib
    sys.modules.setdefault("six", types.ModuleType("six"))
    sys.modules.setdefault("six.moves", moves)
    sys.path.insert(0, str(options.checkout))
    networks = importlib.import_module("models")
    networks.cnn_small_bn = lambda in_ch, in_dim: MODELS.build("cnn_small").build((in_ch, in_dim, in_dim), 10)
    arguments, sys.argv = sys.argv, ["train.py", *published_arguments(options.network)]
    try:
        return importlib.import_module("train")
    finally:
        sys.argv = arguments


def published_arguments(network: str) -> list[str]:
    """Return its command line for the same training."""
    given = {
        "--config": "config/mnist.json", "--model": PUBLISHED_NETWORKS[network], "--device": "cpu", "--method": "fast",
        "--mtlibp_coeff": 0.08, "--eps": EPS, "--train-eps-mul": 1.334, "--train_att_n_steps": 1,
        "--train_att_step_size": 10, "--l1_coeff": 1e-6, "--num-epochs": EPOCHS,
        "--scheduler_opts": f"start=1,length={RAMP}", "--lr": 5e-4, "--data_loader_workers": 0, "--seed": SEED,
    }  # fmt: skip
    return ["--mtlibp", "--manual-init", *(str(word) for pair in given.items() for word in pair)]


@contextlib.contextmanager
def silent():
    """Swallow what the published code prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


SIDES = {"published": Published, "ours": Ours}

if __name__ == "__main__":
    main()
