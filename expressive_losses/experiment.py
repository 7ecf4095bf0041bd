"""One experiment from config to trained network: what train.py does, as functions."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expressive_losses import checkpoint, distributed
from expressive_losses.bounds import TRAINING_METHODS, BoundedNetwork, refuse_disagreement
from expressive_losses.bounds.statistics import batch_norms, own_forwards
from expressive_losses.config import Config
from expressive_losses.data.base import ImageData
from expressive_losses.data.batches import Batches
from expressive_losses.data.split import split_validation
from expressive_losses.errors import Interrupted, UserError
from expressive_losses.evaluate import accuracies
from expressive_losses.losses.base import Loss
from expressive_losses.plots import training_curves
from expressive_losses.precision import exact_float32
from expressive_losses.registry import suggest
from expressive_losses.run import Onlooker, RunDirectory
from expressive_losses.step import NEEDS
from expressive_losses.trainer import Trainer
from expressive_losses.types import Box, Clock


def train(
    config: Config,
    out: Path,
    device: torch.device,
    data_root: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    observe: Callable[[Trainer], None] | None = None,
) -> dict[str, Any]:
    """Train one network into a run directory and return its summary.

    Args:
        config: the experiment.
        out: the run directory.
        device: where to train.
        data_root: folder of the data sets.
        resume: continue the run in ``out`` (or start it, when there is none).
        observe: called with the trainer after every step; must change nothing.

    Raises:
        UserError: anything that the user can mend.
        Interrupted: on SIGTERM, after the state was saved.
    """
    network, *batches, split = prepare(config, device, data_root)
    first = distributed.rank() == 0
    run, quiet = (RunDirectory(out, resume), quiet) if first else (Onlooker(out), True)
    try:
        payload, note = run.load()
        payload = distributed.same_as_first(payload, device)
        if note and not quiet:
            print(note)
        with stop_on_sigterm() as stopped:

            def after_step() -> bool:
                if observe is not None:
                    observe(trainer)
                return stopped()

            trainer = Trainer(config, network, *batches, run, after_step, quiet)
            if payload is None:
                run.start(config, device)
            else:
                trainer.load_state(payload)
            trainer.fit()
        return _finish(config, trainer, split) if first else {}
    finally:
        run.close()


def prepare(
    config: Config, device: torch.device, data_root: Path | None = None
) -> tuple[BoundedNetwork, Batches, Batches, str]:
    """Return the untrained network, the training and the held-out images, and the name of the held-out split.

    Raises:
        UserError: whatever would stop the training later and can be known now, before anything is written.
    """
    _check_needs(config.method)
    seed_everything(config.training.seed)
    train_set, held_out, split = load_data(config, data_root)
    network = build_network(config, train_set).to(device)
    train, rest = Batches(train_set, config.data.augmentation, device), Batches(held_out, device=device)
    clock = Clock(train.steps_per_epoch(config.training.batch_size), config.training.epochs)
    _check_schedules(config, clock)
    if config.training.accumulate > 1 and config.training.bn_statistics != "clean_frozen" and batch_norms(network):
        raise UserError(
            "training.accumulate: with BatchNorm it needs training.bn_statistics=clean_frozen, whose statistics (of "
            "the whole batch) take no gradient"
        )
    _check_processes(config, network, len(train_set))
    _check_bounds(config, network, rest)
    return network, train, rest, split


def _check_needs(loss: Loss) -> None:
    """Refuse a loss that needs what there is not: it would be computed for nobody, and be missed at the first step."""
    for need in loss.needs:
        if need not in NEEDS:
            raise UserError(f"method '{loss.name}': needs '{need}'{suggest(need, NEEDS)}")


def _check_schedules(config: Config, clock: Clock) -> None:
    """Refuse schedules that would not be through by the end of the run, or change nothing in it."""
    end = clock.steps(1, "run")
    ramps = {"eps.schedule": config.eps.schedule, **config.method.ramps()}
    for key, ramp in ramps.items():
        if ramp.end(clock) > end:
            raise UserError(
                f"{key}: the ramp reaches its target at step {ramp.end(clock)}, the run ends at step {end} "
                f"({clock.epochs} epochs): set {key}.length, or train for longer"
            )
    try:
        config.lr_schedule.check(clock.epochs, end)
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_processes(config: Config, network: BoundedNetwork, images: int) -> None:
    """Refuse what several processes cannot do exactly as one would."""
    count, training = distributed.processes(), config.training
    if count == 1:
        return
    if training.accumulate > 1:
        raise UserError("training.accumulate: several processes share the batch already; set it to 1")
    if own := own_forwards(network.model):
        raise UserError(
            f"several processes: layer '{own[0]}' is BatchNorm with a forward of its own, whose statistics cannot be "
            "taken over all of them; use torch's, or train in one process"
        )
    network.train()
    if still := [name for name, layer in batch_norms(network.model).items() if not layer.training]:
        raise UserError(
            f"several processes: layer '{still[0]}' is BatchNorm that its module keeps in eval mode; use one process"
        )
    last = images % training.batch_size or training.batch_size
    least = (
        training.batch_size if last == 1 else min(last, training.batch_size)
    )  # a single image at the end is left out
    if least < count:
        raise UserError(f"a batch of {least} images for {count} processes; change training.batch_size")


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch: a module of the user's may draw its weights from any of them.

    Data order, augmentation and attacks have generators of their own, made from (seed, step).
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@torch.no_grad()
@exact_float32()
def _check_bounds(config: Config, network: BoundedNetwork, images: Batches) -> None:
    """Bound two images by every method that training will use: a layer without bounds is found now, or read wrongly."""
    x, labels = images.batch(torch.arange(min(2, len(images))), augment=False)
    methods = {"ibp", *(need for need in config.method.needs if need in TRAINING_METHODS)}
    with torch.random.fork_rng(devices=[]):
        refuse_disagreement(network.eval())
        network.bounds_of(Box.around(x, 0.0), labels, sorted(methods))
    network.train()


def load_data(config: Config, data_root: Path | None) -> tuple[ImageData, ImageData, str]:
    """Return (training images, held-out images, name of the held-out split).

    Held out is a validation split if the config asks for one, else the test set.
    """
    whole = config.data.load(data_root, "train")
    if config.validation == 0:
        test = config.data.load(data_root, "test")
        if test.shape != whole.shape:
            shapes = f"test images are {test.shape}, training images {whole.shape}"
            raise UserError(f"data set '{config.data.name}': {shapes}")
        return whole, test, "test"
    share = config.validation if config.validation < 1 else int(config.validation)
    return *split_validation(whole, share), "validation"


def build_network(config: Config, data: ImageData) -> BoundedNetwork:
    """Return the untrained network for these images, normalisation inside."""
    model = config.model.build(data.shape, data.classes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model '{getattr(config.model, 'path', config.model.name)}' has no parameters to train")
    return BoundedNetwork(model, data.shape, data.classes, config.data.mean, config.data.std)


@contextmanager
def stop_on_sigterm() -> Iterator:
    """Turn SIGTERM (a machine being taken back) into a request to save and stop; yields the question "stop now?"."""
    asked = False

    def ask(_signal, _frame) -> None:
        nonlocal asked
        asked = True

    try:
        former = signal.signal(signal.SIGTERM, ask)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, former)


def _finish(config: Config, trainer: Trainer, split: str) -> dict[str, Any]:
    figures = accuracies(trainer.network, trainer.held_out, float(config.eps.target), config.test_attack)
    checkpoint.save(trainer.run.model, checkpoint.describe(trainer.network, config))
    summary = {
        "method": config.method.spec(),
        "data": config.data.name,
        "model": config.model.spec(),
        "eps": config.eps.target.text,
        "seed": config.training.seed,
        "epochs": config.training.epochs,
        "split": split,
        "images": len(trainer.held_out),
        **{name: round(100 * value, 4) for name, value in figures.items()},
        "training_seconds": round(trainer.seconds, 3),
        "config": config.fingerprint(),
        "checkpoint": str(trainer.run.model),
    }
    trainer.run.finish(summary)
    training_curves(trainer.run.metrics(), trainer.run.path / "curves.png")
    return summary


__all__ = ["Interrupted", "build_network", "load_data", "stop_on_sigterm", "train"]
