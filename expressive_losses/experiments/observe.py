"""What some figures need from the middle of training: measured after each epoch, into observed.jsonl of the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expressive_losses.errors import UserError
from expressive_losses.registry import suggest
from expressive_losses.run import read_jsonl
from expressive_losses.trainer import Trainer
from expressive_losses.types import Box

_IMAGES = 256


@torch.no_grad()
def tightness(trainer: Trainer) -> float | None:
    """Return how much tighter CROWN-IBP is than IBP: the mean over images of sum_j (m_CROWN-IBP - m_IBP)_j / K.

    Over the first training images, at the radius that is trained with at this moment; None while that is 0.

    Source: paper "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", appendix B.
    """
    radius = trainer.radii(trainer.step - 1).bounded
    if radius == 0:
        return None
    x, labels = next(iter(trainer.train.in_order(_IMAGES)))
    bounds = trainer.network.bounds_of(Box.around(x, radius), labels, ("ibp", "crown_ibp"))
    difference = (bounds["crown_ibp"].margins - bounds["ibp"].margins).sum(1) / trainer.network.classes
    return difference.mean().item()


@torch.no_grad()
def second_conv_norm(trainer: Trainer) -> float:
    """Return the l_inf-induced norm of the second convolution: the largest sum of |weights| of a filter.

    Source: paper "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", figure 1.
    """
    convolutions = [module for module in trainer.network.modules() if isinstance(module, nn.Conv2d)]
    if len(convolutions) < 2:
        raise UserError("second_conv_norm: the network has no second convolution")
    return convolutions[1].weight.abs().flatten(1).sum(1).max().item()


OBSERVERS: dict[str, Callable[[Trainer], float | None]] = {
    "tightness": tightness,
    "second_conv_norm": second_conv_norm,
}


class Observer:
    """Called after every step of training; measures at the end of each epoch, without a trace in the training.

    Args:
        names: of :data:`OBSERVERS`.
        run: the run directory.
    """

    def __init__(self, names: Sequence[str], run: Path) -> None:
        self._measured = {name: _known(name) for name in names}
        self._path = run / "observed.jsonl"

    def __call__(self, trainer: Trainer) -> None:
        """Append one row after the last step of an epoch."""
        if trainer.step % trainer.steps_per_epoch:
            return
        training = trainer.network.training
        trainer.network.eval()
        row: dict[str, Any] = {"epoch": trainer.step // trainer.steps_per_epoch}
        row |= {name: function(trainer) for name, function in self._measured.items()}
        trainer.network.train(training)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an epoch, the last where a resumed run measured one again, with the metrics of the epoch."""
        metrics = {row["epoch"]: row for row in read_jsonl(self._path.with_name("metrics.jsonl"))}
        found = {row["epoch"]: row for row in read_jsonl(self._path)}
        return [{**row, **_held_out(metrics.get(epoch, {}))} for epoch, row in sorted(found.items())]


def _known(name: str) -> Callable[[Trainer], float | None]:
    if name not in OBSERVERS:
        raise UserError(f"observe: unknown '{name}'{suggest(name, OBSERVERS)}")
    return OBSERVERS[name]


def _held_out(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: 100 * value for name, value in metrics.get("held_out", {}).items()}
