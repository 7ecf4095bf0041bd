"""train.py --dry-run: what would be trained, and about how long that takes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, mm_flop

from expressive_losses import experiment
from expressive_losses.bounds.products import ONEDNN_LINEAR
from expressive_losses.capture import STEPS_BEFORE
from expressive_losses.config import Config
from expressive_losses.run import RunDirectory
from expressive_losses.trainer import Trainer

_TIMED_STEPS = 3


class _FlopCounter(TorchDispatchMode):
    """Sums torch's own operation counts. Its FlopCounterMode also follows modules, which autograd.grad breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket is ONEDNN_LINEAR:
            self.total += mm_flop(args[0], args[1].t(), out_val=result)
        elif (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass(frozen=True)
class Cost:
    """Of one training step at some point of the run: floating-point operations, and seconds."""

    flops: int
    seconds: float


def dry_run(config: Config, device: torch.device, data_root: Path | None = None) -> str:
    """Return the resolved config, the size of the network, and FLOPs and time of an epoch, from a few timed steps.

    Operations are those of convolutions and matrix products, a multiply-add counted as two; time is without
    evaluation.

    Raises:
        UserError: as training would.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(config, device, data_root, Path(folder))
        costs = {name: _cost(trainer, step) for name, step in _phases(trainer).items()}
    weights = sum(parameter.numel() for parameter in trainer.network.parameters())
    lines = [
        yaml.safe_dump(config.resolved(), sort_keys=False),
        f"parameters     {weights:,}",
        f"images         {len(trainer.train):,} to train, {len(trainer.held_out):,} held out",
        f"steps          {trainer.steps_per_epoch:,} an epoch, {trainer.steps:,} in all",
    ]
    lines += [f"{name:<14} {_line(cost, trainer.steps_per_epoch)}" for name, cost in costs.items()]
    return "\n".join([*lines, f"all in all     about {_duration(_total(trainer, costs))}, without evaluation"])


def _trainer(config: Config, device: torch.device, data_root: Path | None, folder: Path) -> Trainer:
    network, *batches, _ = experiment.prepare(config, device, data_root)
    run = RunDirectory(folder)
    run.close()
    return Trainer(config, network, *batches, run, quiet=True)


def _phases(trainer: Trainer) -> dict[str, int]:
    """Return a step of each phase that the run has."""
    end = min(trainer.config.eps.schedule.end(trainer.clock), trainer.steps)
    radii = [(step, trainer.radii(step)) for step in range(0, trainer.steps, max(1, trainer.steps // 1000))]
    phases = {"warm-up": next((step for step, found in radii if found.warmup), None)}
    ramp = [step for step, found in radii if not found.warmup and step < end]
    phases["ramp"] = ramp[len(ramp) // 2] if ramp else None
    phases["after it"] = end if end < trainer.steps else None
    return {name: step for name, step in phases.items() if step is not None}


def _cost(trainer: Trainer, step: int) -> Cost:
    indices = torch.arange(min(trainer.config.training.batch_size, len(trainer.train)), device=trainer.train.device)
    trainer.step, radii = step, trainer.radii(step)
    with trainer.updates.one_by_one():
        # what is done once (tracing) is no part of it, and cannot be counted
        terms = trainer.train_step(indices, radii)
        with _FlopCounter() as counter:
            trainer.train_step(indices, radii)
    if trainer.updates.graphs is not None:
        for _ in range(STEPS_BEFORE + 1):  # until it has its graph
            terms = trainer.train_step(indices, radii)
    float(terms["total"])  # waits for a GPU
    started = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        terms = trainer.train_step(indices, radii)
    float(terms["total"])
    return Cost(counter.total, (time.perf_counter() - started) / _TIMED_STEPS)


def _total(trainer: Trainer, costs: dict[str, Cost]) -> float:
    """Return seconds of the whole run: every step costs what its phase does."""
    end, total = trainer.config.eps.schedule.end(trainer.clock), 0.0
    for epoch in range(trainer.config.training.epochs):
        step = epoch * trainer.steps_per_epoch + trainer.steps_per_epoch // 2
        name = "warm-up" if trainer.radii(step).warmup else "ramp" if step < end else "after it"
        total += trainer.steps_per_epoch * costs.get(name, next(iter(costs.values()))).seconds
    return total


def _line(cost: Cost, steps: int) -> str:
    return (
        f"{cost.flops / 1e9:.3g} GFLOP and {cost.seconds:.3g} s a step; "
        f"{cost.flops * steps / 1e12:.3g} TFLOP and {_duration(cost.seconds * steps)} an epoch"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
