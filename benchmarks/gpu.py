"""What only a GPU can show: updates with and without CUDA graphs, and the goals for trainings. JSON rows on stdout.

    python benchmarks/gpu.py steps > results/gpu/steps.jsonl        CNN7, every method, MNIST's and CIFAR-10's shapes
    python benchmarks/gpu.py goals > results/gpu/goals.jsonl        70 epochs on MNIST run, 160 on CIFAR-10 estimated

``steps``: milliseconds of a step after the ramp, one by one and from a graph, in float32 and in TensorFloat-32;
``busy`` is the share of the time in which kernels run (by the profiler), ``share_of_matrix_rate`` the operations of the
step's convolutions and matrix products a second, divided by those of a product of two large matrices in the same
arithmetic.

``goals``: the recipes of paper "Expressive Losses" on random images where there is no data set: time does not depend on
what they show, accuracy does. A training that outlasts ``--limit`` seconds is stopped; its row says after which step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import circumstances
from torch.profiler import ProfilerActivity, profile
from training import _END, CIFAR, EXTRA, METHODS, MNIST, ROOT, flops_of, matrix_rate, seconds_of, trainer_of

from expressive_losses import config as configs
from expressive_losses import experiment
from expressive_losses.capture import STEPS_BEFORE
from expressive_losses.cli.dry_run import _cost, _phases, _total
from expressive_losses.data.base import ImageData
from expressive_losses.data.batches import Batches
from expressive_losses.errors import Interrupted, UserError
from expressive_losses.evaluate import accuracies
from expressive_losses.precision import training_precision
from expressive_losses.run import RunDirectory
from expressive_losses.trainer import Trainer

#: capture, precision.
MODES = (("never", "float32"), ("auto", "float32"), ("never", "tf32"), ("auto", "tf32"))
#: Recipe, shape of an image, training images, goal in seconds.
GOALS = (
    ("mnist_0.1/mtl_ibp", MNIST, 60000, 150.0),
    ("cifar10_2_255/mtl_ibp", CIFAR, 50000, 1800.0),
)


def main() -> None:
    """Print the rows of one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("steps", "goals"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10, help="steps that are timed together")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--network", default="cnn7")
    parser.add_argument("--only", help="methods, with commas between")
    parser.add_argument("--limit", type=float, default=170, help="seconds of a whole training")
    parser.add_argument("--epochs", type=int, help="of a whole training, in place of the recipe's")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing was measured")
    for row in {"steps": steps, "goals": goals}[options.part](options):
        print(json.dumps({**row, **circumstances(), "device": device_name(options.device)}), flush=True)


def device_name(device: str) -> str:
    """Return what the figures were measured on."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def steps(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each method, shape and mode."""
    rates = {precision: rate_in(precision, options.device) for _, precision in MODES}
    methods = options.only.split(",") if options.only else METHODS
    for shape in (MNIST, CIFAR):
        for method in methods:
            for capture, precision in MODES:
                extra = (f"training.capture={capture}", f"training.precision={precision}", *EXTRA.get(method, ()))
                trainer = trainer_of(options.network, shape, options.batch, method, extra, device=options.device)
                seconds_of(trainer, _END, STEPS_BEFORE + 2)  # until it has its graph
                seconds = seconds_of(trainer, _END, options.rounds)
                kernels, flops = kernel_seconds(trainer), flops_of(trainer, _END)
                yield {
                    "network": options.network, "shape": shape, "batch": options.batch, "method": method,
                    "capture": capture, "captured": trainer.updates.graphs is not None, "precision": precision,
                    "rounds": options.rounds, "images": options.batch * options.rounds,
                    "step_ms": round(1000 * seconds, 3), "images_per_second": round(options.batch / seconds),
                    "busy": round(kernels / seconds, 3), "gflop": round(flops / 1e9, 2),
                    "share_of_matrix_rate": round(flops / seconds / rates[precision], 3),
                }  # fmt: skip


def rate_in(precision: str, device: str) -> float:
    """Return the operations a second of a large product of matrices."""
    with training_precision(precision):
        return matrix_rate(device, 1024 if device == "cpu" else 8192)


def kernel_seconds(trainer: Trainer, count: int = 5) -> float:
    """Return the seconds that kernels run for in a step; 0 without a GPU."""
    if trainer.train.device.type != "cuda":
        return 0.0
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        seconds_of(trainer, _END, count)
    return sum(event.self_device_time_total for event in found.key_averages()) / 1e6 / count


def goals(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the estimated time of each recipe from its phases, and the time of the first one that was really run."""
    for recipe, shape, count, goal in GOALS:
        with tempfile.TemporaryDirectory() as folder:
            trainer, data = trainer_of_recipe(recipe, shape, count, Path(folder), options)
            costs = {name: _cost(trainer, step) for name, step in _phases(trainer).items()}
        yield {
            "recipe": recipe, "goal_seconds": goal, "run": False, "data": data, "images": len(trainer.train),
            "epochs": trainer.clock.epochs, "estimated_seconds": round(_total(trainer, costs), 1),
            "step_ms": {name: round(1000 * cost.seconds, 3) for name, cost in costs.items()},
            "captured": trainer.updates.graphs is not None, "precision": trainer.config.training.precision,
        }  # fmt: skip
    recipe, shape, count, goal = GOALS[0]
    with tempfile.TemporaryDirectory() as folder:
        trainer, data = trainer_of_recipe(recipe, shape, count, Path(folder), options)
        about = {"recipe": recipe, "goal_seconds": goal, "run": True, "data": data, "images": len(trainer.train)}
        yield about | whole_training(trainer, options.limit)


def trainer_of_recipe(
    recipe: str, shape: tuple[int, ...], count: int, folder: Path, options: argparse.Namespace
) -> tuple[Trainer, str]:
    """Return a trainer of a recipe in TensorFloat-32 (MNIST's attack: FGSM), and the name of its data."""
    changes = [f"model={options.network}", "training.precision=tf32"]
    changes += ["training.evaluate_every=1000", "training.checkpoint_every=1000"]
    changes += [f"training.epochs={options.epochs}", "eps.schedule.length=1"] if options.epochs else []
    changes += ["lr_schedule=constant"] if options.epochs else []
    changes += ["attack={name: fgsm}"] if shape == MNIST else []
    config = configs.load(ROOT / "configs" / f"{recipe}.yaml", map(configs.parse_assignment, changes))
    try:
        train, test, _ = experiment.load_data(config, options.data_dir)
        data = config.data.name
    except UserError:
        train, test, data = random_images(shape, count), random_images(shape, 1000), "random"
    torch.manual_seed(config.training.seed)
    network = experiment.build_network(config, train).to(options.device)
    batches = Batches(train, config.data.augmentation, options.device), Batches(test, device=options.device)
    return Trainer(config, network, *batches, RunDirectory(folder), quiet=True), data


def random_images(shape: tuple[int, ...], count: int) -> ImageData:
    """Return images of noise in ten classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return ImageData.checked(images, torch.randint(10, (count,), generator=generator), 10)


def whole_training(trainer: Trainer, limit: float) -> dict[str, Any]:
    """Return how long a training took, as train.py would run it, and what came out; or how far it came."""
    began = time.monotonic()
    trainer.stop = lambda: time.monotonic() - began > limit
    try:
        trainer.fit()
    except Interrupted:
        return {"finished": False, "limit_seconds": limit, "steps_done": trainer.step, "steps": trainer.steps}
    found = accuracies(trainer.network, trainer.held_out, float(trainer.config.eps.target))
    percent = {name: round(100 * value, 2) for name, value in found.items()}
    return {"finished": True, "steps": trainer.steps, "seconds": round(time.monotonic() - began, 1), **percent}


if __name__ == "__main__":
    main()
