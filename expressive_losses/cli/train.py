"""The command line of train.py."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from expressive_losses import config as configs
from expressive_losses import distributed, experiment
from expressive_losses.allocator import keep_freed_memory
from expressive_losses.checkpoint import code_named_by
from expressive_losses.cli.arguments import train_parser
from expressive_losses.cli.common import choose_device, deterministic
from expressive_losses.cli.dry_run import dry_run
from expressive_losses.errors import UserError
from expressive_losses.registry import ATTACKS, DATASETS, EPS_SCHEDULES, LOSSES, LR_SCHEDULES, MODELS, OPTIMIZERS
from expressive_losses.run import CONFIG

#: The recipes of a source checkout; an installed package has none.
CONFIGS = Path(__file__).parents[2] / "configs"


def train(arguments: Sequence[str]) -> None:
    """Train as the arguments say; see ``--help``."""
    options = train_parser().parse_args(arguments)
    if options.list:
        print(listing())
        return
    config = config_of(options)
    device = choose_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    if options.dry_run:
        print(dry_run(config, device, options.data_dir))
        return
    out = options.out or default_run_directory(config)
    with distributed.joined(device), deterministic(options.deterministic):
        summary = experiment.train(config, out, device, options.data_dir, options.resume, options.quiet)
    if summary and not options.quiet:
        trusted = code_named_by({"config": config.resolved()})
        print(train_summary(summary, options.data_dir, trusted))


def config_of(options: argparse.Namespace) -> configs.Config:
    """Return the config that the options ask for; of a run that is resumed without any, its own.

    Raises:
        UserError: there is no such run, or as :func:`expressive_losses.config.load`.
    """
    given = overrides(options)
    if not (options.resume and options.out) or options.config or given:
        return configs.load(options.config, given)
    if not (options.out / CONFIG).is_file():
        raise UserError(f"{options.out}: no run to resume here; to start one, say what to train, e.g. --method")
    return configs.load(options.out / CONFIG)


def overrides(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the options that were given as config mappings, ``--set`` last."""
    nested = {
        "method": {"name": options.method} if options.method is not None else None,
        "data": {"name": options.dataset} if options.dataset is not None else None,
        "model": {"name": options.model} if options.model is not None else None,
        "eps": {"target": options.eps} if options.eps is not None else None,
    }
    training = {key: getattr(options, key) for key in ("epochs", "seed") if getattr(options, key) is not None}
    given = [{key: value} for key, value in nested.items() if value is not None]
    if options.alpha is not None:
        given.append({"method": {"alpha": options.alpha}})
    if training:
        given.append({"training": training})
    return given + [configs.parse_assignment(text) for text in options.assignments]


def default_run_directory(config: configs.Config) -> Path:
    """Return runs/<dataset>/<method>-<alpha>-<model>-eps<eps>-seed<seed>."""
    alpha = getattr(config.method, "alpha", None)
    parts = [
        config.method.name,
        *([f"alpha{alpha:g}"] if alpha is not None else []),
        config.model.name,
        f"eps{config.eps.target.text.replace('/', '_')}",
        f"seed{config.training.seed}",
    ]
    return Path("runs") / config.data.name.replace(":", "_") / "-".join(part.replace(":", "_") for part in parts)


def listing() -> str:
    """Return all plug-ins by kind, one line of help each."""
    lines = []
    for kind in (LOSSES, ATTACKS, MODELS, DATASETS, EPS_SCHEDULES, LR_SCHEDULES, OPTIMIZERS):
        lines.append(f"{kind.kind}:")
        lines += [f"  {name:<16} {kind.help(name)}" for name in kind.names()]
    return "\n".join([*lines, *config_listing()])


def config_listing(folder: Path = CONFIGS) -> list[str]:
    """Return one line for each recipe of a folder: path, method, data set, model, radius, published accuracies."""
    files = sorted(path for path in folder.rglob("*.yaml") if not path.stem.startswith("base"))
    return ["config:", *(f"  {path.relative_to(folder.parent)!s:<64} {_recipe(configs.load(path))}" for path in files)]


def _recipe(config: configs.Config) -> str:
    """Return the line of help of one recipe."""
    text = f"{config.method.name} on {config.data.name} with {config.model.name}, eps {config.eps.target.text}"
    paper = config.paper or {}
    figures = ", ".join(f"{paper[key]} {key}" for key in ("natural", "verified") if paper.get(key) is not None)
    return f"{text}; published: {figures}" if figures else text


def train_summary(summary: dict[str, Any], data_dir: Path | None = None, trusted: Iterable[str] = ()) -> str:
    """Return the closing lines of a training run, with the command that verifies it.

    Args:
        summary: the final figures.
        data_dir: as it was given.
        trusted: import paths of the user's own code in the config, which the checkpoint will ask for.
    """
    command = ["python", "verify.py", "--model", str(summary["checkpoint"]), "--bound", "cascade"]
    command += [] if data_dir is None else ["--data-dir", str(data_dir)]
    command += [word for path in trusted for word in ("--trust", path)]
    return "\n".join(
        [
            "",
            f"{summary['method']['name']} on {summary['data']}, eps {summary['eps']}: "
            f"{summary['images']} {summary['split']} images, {summary['training_seconds']:.0f} s of training",
            f"  natural accuracy      {summary['natural']:6.2f} %",
            f"  under attack          {summary['adversarial']:6.2f} %   (upper bound on robust accuracy)",
            f"  IBP in float32        {summary['ibp']:6.2f} %   (lower bound, up to rounding)",
            "",
            "prove it, and more, with",
            f"  {shlex.join(command)}",
        ]
    )
