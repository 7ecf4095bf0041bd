"""One experiment from config to trained network: what train.py does, as functions."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Config
from expressive_losses.data.base import ImageData
from expressive_losses.data.batches import Batches
from expressive_losses.data.split import split_validation
from expressive_losses.errors import UserError
from expressive_losses.evaluate import accuracies
from expressive_losses.plots import training_curves
from expressive_losses.run import RunDirectory
from expressive_losses.trainer import Interrupted, Trainer


def train(
    config: Config,
    out: Path,
    device: torch.device,
    data_root: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train one network into a run directory and return its summary.

    Args:
        config: the experiment.
        out: the run directory.
        device: where to train.
        data_root: folder of the data sets.
        resume: continue the run in ``out`` (or start it, when there is none).

    Raises:
        UserError: anything that the user can mend.
        Interrupted: on SIGTERM, after the state was saved.
    """
    torch.manual_seed(config.training.seed)
    train_set, held_out, split = load_data(config, data_root)
    network = build_network(config, train_set).to(device)
    run = RunDirectory(out, resume)
    try:
        payload, note = run.load()
        if note and not quiet:
            print(note)
        augmentation = config.data.augmentation
        batches = Batches(train_set, augmentation, device), Batches(held_out, device=device)
        with stop_on_sigterm() as stopped:
            trainer = Trainer(config, network, *batches, run, stopped, quiet)
            if payload is None:
                run.start(config, device)
            else:
                trainer.load_state(payload)
            trainer.fit()
        return _finish(config, trainer, split)
    finally:
        run.close()


def load_data(config: Config, data_root: Path | None) -> tuple[ImageData, ImageData, str]:
    """Return (training images, held-out images, name of the held-out split).

    Held out is a validation split if the config asks for one, else the test set.
    """
    whole = config.data.load(data_root, "train")
    if config.validation == 0:
        return whole, config.data.load(data_root, "test"), "test"
    share = config.validation if config.validation < 1 else int(config.validation)
    return *split_validation(whole, share), "validation"


def build_network(config: Config, data: ImageData) -> BoundedNetwork:
    """Return the untrained network for these images, normalisation inside."""
    model = config.model.build(data.shape, data.classes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model '{config.model.name}' has no parameters to train")
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
        "checkpoint": str(trainer.run.model),
    }
    trainer.run.finish(summary)
    training_curves(trainer.run.metrics(), trainer.run.path / "curves.png")
    return summary


__all__ = ["Interrupted", "build_network", "load_data", "stop_on_sigterm", "train"]
