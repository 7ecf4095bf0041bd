"""What verification is about, from the command line: a network and images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.config import Config, Radius
from expressive_losses.data.split import split_validation
from expressive_losses.errors import UserError
from expressive_losses.registry import DATASETS
from expressive_losses.run import TRAINED_MODEL


@dataclass(frozen=True)
class Subject:
    """A network, the config it was trained with, and where it came from."""

    network: BoundedNetwork
    config: Config
    path: Path


@dataclass(frozen=True)
class Images:
    """One split: images as uint8 in 0..255 or floats in [0, 1], (N, C, H, W), and labels (N,)."""

    name: str
    images: Tensor
    labels: Tensor


def add_subject_arguments(parser) -> None:
    """Add the options that name the network and the images to a parser or a group of one."""
    parser.add_argument("--model", type=Path, metavar="CKPT", help="checkpoint file, or a run directory of train.py")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="IMPORT", help="code of yours that the checkpoint may import"
    )
    parser.add_argument("--dataset", metavar="NAME", help="default: the one trained on")
    parser.add_argument("--split", default="test", choices=["test", "train", "validation"])
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="default $EXPRESSIVE_LOSSES_DATA or ./data")


def subject_of(options: argparse.Namespace) -> tuple[Subject, Images]:
    """Return what the options of :func:`add_subject_arguments` name."""
    subject = load_subject(options.model, options.trust)
    return subject, load_images(subject.config, options.dataset, options.data_dir, options.split)


def parse_eps(text: str) -> Radius:
    """Parse a radius.

    Raises:
        UserError: not a number or fraction in [0, 1].
    """
    try:
        return Radius.parse(text)
    except ValueError as error:
        raise UserError(f"--eps: {error}") from None


def load_subject(path: Path | None, trusted: Sequence[str] = ()) -> Subject:
    """Load a checkpoint, or the trained model of a run directory.

    Args:
        trusted: import paths that the checkpoint may use.

    Raises:
        UserError: nothing usable there.
    """
    if path is None:
        raise UserError("--model is missing: give a checkpoint or a run directory, e.g. --model runs/digits/x/model.pt")
    path = path / TRAINED_MODEL if path.is_dir() else path
    payload = checkpoint.read(path)
    return Subject(checkpoint.network_of(payload, str(path), trusted), Config.build(payload["config"], str(path)), path)


def load_images(config: Config, dataset: str | None, root: Path | None, split: str) -> Images:
    """Return one split of the data set, by default of the one trained on.

    Raises:
        UserError: missing data, or a validation split that the training did not hold out.
    """
    source = DATASETS.build(dataset) if dataset else config.data
    if split == "validation":
        if not config.validation:
            raise UserError("--split validation: this network was trained without a validation split; use test")
        share = config.validation if config.validation < 1 else int(config.validation)
        data = split_validation(source.load(root, "train"), share)[1]
    else:
        data = source.load(root, split)
    images = data.images if data.scale == 255 else data.images.float() / data.scale
    return Images(source.name, images, data.labels)
