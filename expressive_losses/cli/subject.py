"""What verification is about, from the command line: a network and images."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.cli.foreign import Description, is_foreign, network_from
from expressive_losses.config import Config, Radius
from expressive_losses.data.split import split_validation
from expressive_losses.errors import UserError
from expressive_losses.registry import DATASETS, MODELS, import_module, suggest
from expressive_losses.run import TRAINED_MODEL


@dataclass(frozen=True)
class Subject:
    """A network, the config it was trained with (``None``: not by this package), and the file it came from."""

    network: BoundedNetwork
    config: Config | None
    path: Path

    def eps(self, text: str | None) -> Radius:
        """Return the radius asked for, or else the one trained for.

        Raises:
            UserError: not a radius, or none given and none known.
        """
        if text is not None:
            return parse_eps(text)
        if self.config is None:
            raise UserError(f"--eps is missing: {self.path} does not say for which radius it was trained")
        return self.config.eps.target


@dataclass(frozen=True)
class Images:
    """One split: images as uint8 in 0..255 or floats in [0, 1], (N, C, H, W), and labels (N,)."""

    name: str
    images: Tensor
    labels: Tensor


def import_plugins(options: argparse.Namespace) -> None:
    """Import the modules of the user's own: what they register then has its name, in ``--bound`` and in ledgers.

    Raises:
        UserError: a module that is not there, or fails.
    """
    for module in options.plugin:
        import_module(module)


def subject_of(options: argparse.Namespace) -> tuple[Subject, Images]:
    """Return what the options of :func:`expressive_losses.cli.arguments.add_subject_arguments` name.

    Raises:
        UserError: something is missing, or does not fit.
    """
    subject = load_subject(options)
    return subject, load_images(subject, options.dataset, options.data_dir, options.split)


def parse_eps(text: str) -> Radius:
    """Parse a radius.

    Raises:
        UserError: not a number or fraction in [0, 1].
    """
    try:
        return Radius.parse(text)
    except ValueError as error:
        raise UserError(f"--eps: {error}") from None


def load_subject(options: argparse.Namespace) -> Subject:
    """Load a checkpoint, the trained model of a run directory, or a network that was not trained here.

    Raises:
        UserError: nothing usable there.
    """
    if options.model is None:
        raise UserError("--model is missing: give a checkpoint or a run directory, e.g. --model runs/digits/x/model.pt")
    names = ("weights", "dataset", "shape", "classes", "mean", "std")
    about = Description(*(getattr(options, name) for name in names), tuple(options.model_set))
    if is_foreign(options.model):
        if not options.dataset:
            raise UserError(f"--dataset is missing: '{options.model}' does not say on what it was trained")
        network, path = network_from(options.model, about)
        return Subject(network, None, path)
    if options.weights and not Path(options.model).exists():
        raise UserError(f"unknown model '{options.model}'{suggest(options.model, MODELS.names())}")
    about.refuse("a checkpoint", "weights", "shape", "classes", "mean", "std", "fields")
    path = Path(options.model)
    path = path / TRAINED_MODEL if path.is_dir() else path
    payload = checkpoint.read(path)
    network = checkpoint.network_of(payload, str(path), [*options.trust, *options.plugin])
    return Subject(network, Config.build(payload["config"], str(path)), path)


def load_images(subject: Subject, dataset: str | None, root: Path | None, split: str) -> Images:
    """Return one split of the data set, by default of the one trained on.

    Raises:
        UserError: missing data, or a validation split that the training did not hold out.
    """
    config = subject.config
    source = DATASETS.build(dataset) if dataset else config.data
    if split == "validation":
        if config is None or not config.validation:
            raise UserError("--split validation: this network was trained without a validation split; use test")
        share = config.validation if config.validation < 1 else int(config.validation)
        data = split_validation(source.load(root, "train"), share)[1]
    else:
        data = source.load(root, split)
    images = data.images if data.scale == 255 else data.images.float() / data.scale
    return Images(source.name, images, data.labels)
