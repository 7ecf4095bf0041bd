"""The command line of verify.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from expressive_losses import checkpoint
from expressive_losses.bounds import BoundedNetwork
from expressive_losses.cli.common import choose_device
from expressive_losses.config import Config, Radius, parse_assignment
from expressive_losses.data.split import split_validation
from expressive_losses.errors import UserError
from expressive_losses.registry import DATASETS, VERIFIERS
from expressive_losses.run import TRAINED_MODEL
from expressive_losses.verify import build_stages, table_of
from expressive_losses.verify import verify as verify_images

VERIFY_HELP = """\
Prove, or refute with a counterexample, that a trained classifier keeps its prediction within eps.

  verify.py --model runs/digits/my_run/model.pt                       everything there is, cheap bounds first
  verify.py --model ckpt.pt --bound crown --first 200                 one bound
  verify.py --model ckpt.pt --bound ibp,crown --set pgd.restarts=10   several, with options
  verify.py --model ckpt.pt --out results --resume                    go on after an interruption

Images go through: clean prediction, PGD attack, then the bounds, each seeing only what is still undecided.
Only images with every margin proven positive count as verified; what is undecided does not.
"""


@dataclass(frozen=True)
class Subject:
    """What is verified: a network, the config it was trained with, and where it came from."""

    network: BoundedNetwork
    config: Config
    path: Path


def verify(arguments: Sequence[str]) -> None:
    """Verify as the arguments say; see ``--help``."""
    options = verify_parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"  {name:<12} {VERIFIERS.help(name)}" for name in VERIFIERS.names()))
        return
    if options.model is None:
        raise UserError("--model is missing: give a checkpoint or a run directory, e.g. --model runs/digits/x/model.pt")
    stages = build_stages(options.bound, stage_options(options.assignments), options.tolerance)
    device = choose_device(options.device)
    subject = load_subject(options.model, options.trust)
    eps = parse_eps(options.eps) if options.eps is not None else subject.config.eps.target
    dataset, images, labels = load_images(subject.config, options.dataset, options.data_dir, options.split)
    if not options.quiet:
        print(f"verifying {subject.path} on {dataset} ({options.split}), eps {eps.text} = {float(eps):.6g}")
    summary = verify_images(
        subject.network,
        images,
        labels,
        float(eps),
        stages,
        options.out or default_folder(subject.path, options, eps),
        eps_text=eps.text,
        dataset=dataset,
        split=options.split,
        first=options.first,
        batch_size=options.batch_size,
        resume=options.resume,
        seed=options.seed,
        device=device,
        dtype=options.dtype,
        budget=options.budget,
        progress=not options.quiet,
    )
    if not options.quiet:
        print(table_of(summary))


def verify_parser() -> argparse.ArgumentParser:
    """Return the argument parser of verify.py."""
    parser = argparse.ArgumentParser(
        prog="verify.py",
        description=VERIFY_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    question = parser.add_argument_group("question")
    question.add_argument("--model", type=Path, metavar="CKPT", help="checkpoint file, or a run directory of train.py")
    question.add_argument("--bound", default="cascade", help="one or several of --list, or cascade (default)")
    question.add_argument(
        "--trust", action="append", default=[], metavar="IMPORT", help="code of yours that the checkpoint may import"
    )
    question.add_argument("--eps", help="radius in pixel units, 0.3 or 8/255; default: the one trained for")
    question.add_argument("--dataset", metavar="NAME", help="default: the one trained on")
    question.add_argument("--split", default="test", choices=["test", "train", "validation"])
    question.add_argument("--first", type=positive, metavar="N", help="only the first N images")
    how = parser.add_argument_group("how")
    how.add_argument("--batch-size", type=batch_size, metavar="N", help="images at once; auto (default) by bound")
    how.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    how.add_argument("--tolerance", type=float, help="a margin counts as positive above this; default 1e-5")
    how.add_argument("--budget", type=float, metavar="SECONDS", help="stop then; the rest counts as not verified")
    how.add_argument("--seed", type=int, default=0, help="of the attacks' random starts")
    how.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        dest="assignments",
        help="option of a stage, e.g. --set pgd.restarts=10 --set alpha-crown.iterations=50",
    )
    where = parser.add_argument_group("where")
    where.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    where.add_argument("--data-dir", type=Path, metavar="DIR", help="default $EXPRESSIVE_LOSSES_DATA or ./data")
    where.add_argument("--out", type=Path, metavar="DIR", help="ledger, witnesses, summary; default beside the model")
    where.add_argument("--resume", action="store_true", help="continue the ledger in --out")
    where.add_argument("--quiet", action="store_true")
    parser.add_argument("--list", action="store_true", help="list the bounds and attacks, and stop")
    return parser


def positive(text: str) -> int:
    """Parse a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def batch_size(text: str) -> int | None:
    """Parse a batch size; None for "auto"."""
    return None if text == "auto" else positive(text)


def parse_eps(text: str) -> Radius:
    """Parse a radius.

    Raises:
        UserError: not a number or fraction in [0, 1].
    """
    try:
        return Radius.parse(text)
    except ValueError as error:
        raise UserError(f"--eps: {error}") from None


def stage_options(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Turn ``pgd.restarts=10`` into ``{"pgd": {"restarts": 10}}``.

    Raises:
        UserError: when an assignment does not name a stage and a key.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in assignments:
        for stage, fields in parse_assignment(text).items():
            if not isinstance(fields, dict):
                raise UserError(f"--set {text}: expected stage.key=value, for example pgd.restarts=10")
            options.setdefault(stage, {}).update(fields)
    return options


def load_subject(path: Path, trusted: Sequence[str] = ()) -> Subject:
    """Load a checkpoint, or the trained model of a run directory.

    Args:
        trusted: import paths that the checkpoint may use.

    Raises:
        UserError: nothing usable there.
    """
    path = path / TRAINED_MODEL if path.is_dir() else path
    payload = checkpoint.read(path)
    return Subject(checkpoint.network_of(payload, str(path), trusted), Config.build(payload["config"], str(path)), path)


def load_images(config: Config, dataset: str | None, root: Path | None, split: str) -> tuple[str, Tensor, Tensor]:
    """Return (name of the data set, images in [0, 1] (N, C, H, W), labels) of one split.

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
    return source.name, data.images.float() / data.scale, data.labels


def default_folder(model: Path, options: argparse.Namespace, eps: Radius) -> Path:
    """Return <folder of the model>/verify-<bound>-eps<eps>-<split>."""
    return model.parent / f"verify-{options.bound.replace(',', '+')}-eps{eps.text.replace('/', '_')}-{options.split}"
