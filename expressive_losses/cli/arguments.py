"""What the commands take. Nothing here needs torch: help and complaints about arguments come at once."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NoReturn

from expressive_losses.errors import UserError

TRAIN_HELP = """\
Train a classifier whose robustness can be proven.

  train.py --method mtl_ibp --alpha 0.2                      handwritten digits, under a minute on a laptop
  train.py --config configs/quick/mnist_0.3/mtl_ibp.yaml      a recipe
  train.py --dataset mnist --model cnn7 --eps 0.3 --method sabr --alpha 0.4 --set training.batch_size=256
  torchrun --nproc-per-node 4 train.py --config FILE          the same training on four GPUs
  train.py --list                                             everything that has a name

All radii are in pixel units from 0 to 1; fractions such as 8/255 are understood.
"""

VERIFY_HELP = """\
Prove, or refute with a counterexample, that a trained classifier keeps its prediction within eps.

  verify.py --model runs/digits/my_run/model.pt                       everything there is, cheap bounds first
  verify.py --model ckpt.pt --bound crown --first 200                 one bound
  verify.py --model ckpt.pt --bound ibp,crown --set pgd.restarts=10   several, with options
  verify.py --model ckpt.pt --out results --resume                    go on after an interruption

  verify.py --model ckpt.pt --radius --eps 0.4                         how far each image can be certified
  verify.py --model cnn7 --weights published.pt --mean 0.1307 --std 0.3081 --dataset mnist --eps 0.1
  verify.py --model pkg.module:factory --weights published.pt --dataset mnist --eps 0.1
  verify.py --model network.onnx --dataset mnist --eps 0.1             networks that were not trained here
  verify.py check|merge|export|report --help                          tools for what was written

Images go through: clean prediction, interval bounds, PGD attack, then the other bounds, each seeing only what is left.
Only images with every margin proven positive count as verified; what is undecided does not.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like all others; no option may be abbreviated."""

    def __init__(self, prog: str, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError in place of printing the usage."""
        raise UserError(f"{message}; {self.prog} --help explains the options")


def train_parser() -> argparse.ArgumentParser:
    """Return the argument parser of train.py."""
    parser = Parser("train.py", TRAIN_HELP)
    experiment_ = parser.add_argument_group("experiment (each overrides the config file)")
    experiment_.add_argument(
        "--config", type=path, metavar="FILE", help="YAML file; without one: the data set's defaults"
    )
    experiment_.add_argument(
        "--method", metavar="NAME", help="training loss, e.g. mtl_ibp, cc_ibp, sabr, ibp, crown_ibp"
    )
    experiment_.add_argument("--alpha", type=float, help="expressive losses: 0 is adversarial training, 1 is IBP")
    experiment_.add_argument("--dataset", metavar="NAME", help="digits (default), mnist, cifar10, ..., or module:Class")
    experiment_.add_argument(
        "--model", metavar="NAME", help="cnn7, cnn_small, ..., or package.module:factory of your own"
    )
    experiment_.add_argument("--eps", help="radius to be robust to, pixel units: 0.3 or 8/255")
    experiment_.add_argument("--epochs", type=int)
    experiment_.add_argument("--seed", type=int)
    experiment_.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
        help="any other key, e.g. --set optimizer.lr=1e-3 --set training.bn_statistics=clean (repeatable)",
    )  # fmt: skip
    place = parser.add_argument_group("where")
    place.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    place.add_argument(
        "--data-dir", type=path, metavar="DIR", help="data sets; default $EXPRESSIVE_LOSSES_DATA or ./data"
    )
    place.add_argument("--out", type=path, metavar="DIR", help="run directory; default runs/<dataset>/<method>-...")
    place.add_argument("--resume", action="store_true", help="continue the run in --out, exactly; --out is enough")
    place.add_argument(
        "--deterministic",
        action="store_true",
        help="same seed, same bits on a GPU too, for some time (a CPU needs none)",
    )
    place.add_argument("--quiet", action="store_true", help="no progress, no summary")
    parser.add_argument(
        "--list", action="store_true", help="list methods, models, data sets, attacks, schedules, configs and stop"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the whole config, parameters, FLOPs and time of an epoch, and stop"
    )
    return parser


def verify_parser() -> argparse.ArgumentParser:
    """Return the argument parser of verify.py."""
    parser = Parser("verify.py", VERIFY_HELP)
    question = parser.add_argument_group("question")
    add_subject_arguments(question)
    question.add_argument("--bound", default="cascade", help="one or several of --list, or cascade (default)")
    question.add_argument("--eps", help="radius in pixel units, 0.3 or 8/255; default: the one trained for")
    question.add_argument(
        "--radius", action="store_true", help="find each image's largest certified radius up to --eps instead"
    )
    question.add_argument("--first", type=positive, metavar="N", help="only the first N images")
    how = parser.add_argument_group("how")
    how.add_argument("--batch-size", type=batch_size, metavar="N", help="images at once; auto (default) by bound")
    how.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    how.add_argument(
        "--tolerance", type=float, help="a margin is positive above this times the largest logit, or 1; default 1e-4"
    )
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
    where.add_argument("--out", type=path, metavar="DIR", help="ledger, witnesses, summary; default beside the model")
    where.add_argument("--resume", action="store_true", help="continue the ledger in --out")
    where.add_argument("--shard", metavar="I/N", help="only the images I, I+N, ...; default: by rank under torchrun")
    where.add_argument("--report", action="store_true", help="also write report.html and report.md to --out")
    where.add_argument("--quiet", action="store_true")
    parser.add_argument("--list", action="store_true", help="list the bounds and attacks, and stop")
    return parser


def batch_size(text: str) -> int | None:
    """Parse a batch size; None for "auto"."""
    return None if text == "auto" else positive(text)


def add_subject_arguments(parser) -> None:
    """Add the options that name the network and the images to a parser or a group of one."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="checkpoint, run directory of train.py, network.onnx, or (with --weights) an architecture: a registered "
        "name or package.module:factory",
    )
    parser.add_argument(
        "--trust", action="append", default=[], metavar="IMPORT", help="code of yours that the checkpoint may import"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module of yours with bounds or attacks"
    )
    parser.add_argument("--weights", type=path, metavar="FILE", help="state_dict of the architecture")
    parser.add_argument("--shape", type=image_shape, metavar="C,H,W", help="of one image; default: the data set's")
    parser.add_argument("--classes", type=int, metavar="K", help="number of logits; default: the data set's")
    parser.add_argument("--mean", type=numbers, metavar="M,...", help="the network takes (pixel - mean) / std;")
    parser.add_argument("--std", type=numbers, metavar="S,...", help="by channel, pixels from 0 to 1; default 0 and 1")
    parser.add_argument(
        "--model-set", action="append", default=[], metavar="KEY=VALUE", help="field of the architecture, e.g. width=32"
    )
    parser.add_argument("--dataset", metavar="NAME", help="default: the one trained on")
    parser.add_argument("--split", default="test", choices=["test", "train", "validation"])
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="default $EXPRESSIVE_LOSSES_DATA or ./data")


def image_shape(text: str) -> tuple[int, ...]:
    """Parse 1,28,28."""
    shape = tuple(map(int, text.split(",")))
    if len(shape) != 3 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected C,H,W such as 1,28,28, got {text}")
    return shape


def numbers(text: str) -> tuple[float, ...]:
    """Parse 0.1307 or 0.49,0.48,0.45."""
    values = tuple(map(float, text.split(",")))
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"expected finite numbers, got {text}")
    return values


def path(text: str) -> Path:
    """Parse a path; an empty one, of a variable that is not set, would be the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def positive(text: str) -> int:
    """Parse a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value
