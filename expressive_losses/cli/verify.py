"""The command line of verify.py."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expressive_losses.cli.arguments import verify_parser
from expressive_losses.cli.common import choose_device
from expressive_losses.cli.subject import import_plugins, subject_of
from expressive_losses.cli.verify_tools import TOOLS
from expressive_losses.config import Radius, parse_assignment
from expressive_losses.errors import UserError
from expressive_losses.registry import VERIFIERS
from expressive_losses.verify import CASCADE, Settings, build_stages, table_of
from expressive_losses.verify import verify as verify_images
from expressive_losses.verify.radius import certified_radii, radius_table
from expressive_losses.verify.report import write_curve, write_report
from expressive_losses.verify.shard import parse_shard, shard_of_rank


def verify(arguments: Sequence[str]) -> None:
    """Verify as the arguments say; see ``--help``."""
    if arguments and arguments[0] in TOOLS:
        TOOLS[arguments[0]](arguments[1:])
        return
    options = verify_parser().parse_args(arguments)
    import_plugins(options)
    if options.list:
        print("\n".join(f"  {name:<12} {VERIFIERS.help(name)}" for name in VERIFIERS.names()))
        print(f"  {'cascade':<12} These, one after the other: {', '.join(CASCADE)}.")
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
    """Return <folder of the model>/verify-<bound>-eps<eps>-<split>, or radius-...; a data set that was named, too."""
    kind = "radius" if options.radius else "verify"
    data = [options.dataset] if options.dataset else []
    name = "-".join([kind, options.bound.replace(",", "+"), f"eps{eps.text}", *data, options.split])
    return model.parent / re.sub("[/:]", "_", name)
