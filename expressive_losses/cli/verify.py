"""The command line of verify.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expressive_losses.cli.common import Parser, choose_device, positive
from expressive_losses.cli.subject import add_subject_arguments, subject_of
from expressive_losses.cli.verify_tools import TOOLS
from expressive_losses.config import Radius, parse_assignment
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.verify import Settings, build_stages, table_of
from expressive_losses.verify import verify as verify_images
from expressive_losses.verify.radius import certified_radii, radius_table
from expressive_losses.verify.report import write_curve, write_report
from expressive_losses.verify.shard import parse_shard, shard_of_rank

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

Images go through: clean prediction, PGD attack, then the bounds, each seeing only what is still undecided.
Only images with every margin proven positive count as verified; what is undecided does not.
"""


def verify(arguments: Sequence[str]) -> None:
    """Verify as the arguments say; see ``--help``."""
    if arguments and arguments[0] in TOOLS:
        TOOLS[arguments[0]](arguments[1:])
        return
    options = verify_parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"  {name:<12} {VERIFIERS.help(name)}" for name in VERIFIERS.names()))
        return
    if options.radius and options.report:
        raise UserError("--report is about a run without --radius; with the same --out it will show the radii too")
    stages = build_stages(options.bound, stage_options(options.assignments), options.tolerance)
    device = choose_device(options.device)
    subject, data = subject_of(options)
    eps = subject.eps(options.eps)
    shard = parse_shard(options.shard) if options.shard else shard_of_rank()
    out = options.out or default_folder(subject.path, options, eps)
    out = shard.folder(out) if shard else out
    settings = Settings(
        dataset=data.name,
        split=options.split,
        first=options.first,
        shard=shard,
        batch_size=options.batch_size,
        seed=options.seed,
        dtype=options.dtype,
        device=device,
        budget=options.budget,
        resume=options.resume,
        progress=not options.quiet,
    )
    say = (lambda *_: None) if options.quiet else print
    say(f"verifying {subject.path} on {data.name} ({options.split}), eps {in_words(eps)}, into {out}")
    question = (subject.network, data.images, data.labels, eps, stages, out, settings)
    if options.radius:
        summary = certified_radii(*question)
        say(f"{radius_table(summary)}\ncurve: {write_curve(out, summary)}")
        return
    say(table_of(verify_images(*question)))
    if options.report:
        say(f"report: {write_report(out, subject.network, data.images, data.labels)}")


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
    where.add_argument("--out", type=Path, metavar="DIR", help="ledger, witnesses, summary; default beside the model")
    where.add_argument("--resume", action="store_true", help="continue the ledger in --out")
    where.add_argument("--shard", metavar="I/N", help="only the images I, I+N, ...; default: by rank under torchrun")
    where.add_argument("--report", action="store_true", help="also write report.html and report.md to --out")
    where.add_argument("--quiet", action="store_true")
    parser.add_argument("--list", action="store_true", help="list the bounds and attacks, and stop")
    return parser


def batch_size(text: str) -> int | None:
    """Parse a batch size; None for "auto"."""
    return None if text == "auto" else positive(text)


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


def in_words(eps: Radius) -> str:
    """Return "8/255 = 0.0314", or the text alone where it is a decimal number already."""
    return f"{eps.text} = {float(eps):.3g}" if "/" in eps.text else eps.text


def default_folder(model: Path, options: argparse.Namespace, eps: Radius) -> Path:
    """Return <folder of the model>/verify-<bound>-eps<eps>-<split>, or radius-... ."""
    kind = "radius" if options.radius else "verify"
    return model.parent / f"{kind}-{options.bound.replace(',', '+')}-eps{eps.text.replace('/', '_')}-{options.split}"
