"""The values that pass between the parts: a box of inputs, what was bounded over it, what a loss receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Unit = Literal["epochs", "steps", "run"]


class Clock(NamedTuple):
    """How long an epoch and the run are."""

    steps_per_epoch: int
    epochs: int

    def steps(self, length: float, unit: Unit) -> int:
        """Return a length in optimiser steps."""
        return round(
            length * {"steps": 1, "epochs": self.steps_per_epoch, "run": self.steps_per_epoch * self.epochs}[unit]
        )


@dataclass(frozen=True)
class Progress:
    """Where in the run a step is.

    Attributes:
        eps_fraction: eps / eps at the end of the ramp, in [0, 1].
        step: updates done.
        clock: how long an epoch and the run are.
        ramp_end: first step at the full radius.
    """

    eps_fraction: float = 1.0
    step: int = 0
    clock: Clock = Clock(1, 1)
    ramp_end: int = 0


@dataclass(frozen=True)
class Box:
    """An axis-aligned region of images, lower <= upper elementwise, in pixel units and inside [0, 1].

    Shape: both (B, *image).
    """

    lower: Tensor
    upper: Tensor

    @classmethod
    def around(cls, x: Tensor, eps: float | Tensor) -> Box:
        """Return the l_inf ball of radius ``eps`` (pixel units) around ``x``, clipped to [0, 1]."""
        return cls((x - eps).clamp(0.0, 1.0), (x + eps).clamp(0.0, 1.0))

    def __len__(self) -> int:
        return len(self.lower)

    def __getitem__(self, index) -> Box:
        """Return the boxes of some samples (anything that indexes the batch)."""
        return Box(self.lower[index], self.upper[index])

    @property
    def center(self) -> Tensor:
        """The midpoint, (B, *image)."""
        return (self.lower + self.upper) / 2

    @property
    def half_width(self) -> Tensor:
        """Half the side lengths, (B, *image): the unit of an attack's step size."""
        return (self.upper - self.lower) / 2

    def clamp(self, x: Tensor) -> Tensor:
        """Return the point of the box that is nearest to ``x``."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        """Return, per sample, whether ``x`` lies in the box up to ``atol``; (B,) bool."""
        inside = (x >= self.lower - atol) & (x <= self.upper + atol)
        return inside.flatten(1).all(1)

    def shrink(self, ratio: float, towards: Tensor, radius: float | Tensor) -> Box:
        """Return SABR's small box: side ``ratio * radius`` about ``towards``, moved inside this box, then
        clipped to it.

        The centre is the projection of ``towards`` on the box shrunk by ``ratio * radius`` on each side; where
        the box is narrower than the small one its own middle is taken. The result never leaves this box.

        Args:
            ratio: alpha (the papers' lambda) in [0, 1]; 0 gives the point ``towards``, 1 the whole box.
            towards: the adversarial point, (B, *image).
            radius: the radius (pixel units) that ``ratio`` is relative to.

        Source: paper "Expressive Losses", equation (6).
        NOTE: the published code lets the centre leave the region where clipped pixels make it narrower than the
            small box; here the middle is used (docs/differences.md).
        """
        small = ratio * radius
        low, high = self.lower + small, self.upper - small
        middle = self.center
        center = torch.minimum(torch.maximum(towards, torch.minimum(low, middle)), torch.maximum(high, middle))
        return Box(self.clamp(center - small), self.clamp(center + small))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return one uniform point of each box."""
        noise = torch.rand(self.lower.shape, generator=generator, device=self.lower.device, dtype=self.lower.dtype)
        return self.clamp(self.lower + noise * (self.upper - self.lower))


@dataclass(frozen=True)
class Bounds:
    """What one bounding pass over a box returns.

    Attributes:
        margins: sound lower bounds on f_y - f_j for the classes j != y in ascending order, (B, K-1); > 0 means safe.
            With loss fusion one number in place of all, (B, 1): a lower bound on -log sum_j exp(f_j - f_y).
        input: the box as the first layer sees it (normalised).
        relu_inputs: bounds on the input of every ReLU, in the order of the graph.
        upper: sound upper bounds on the same differences, (B, K-1), where IBP computed them; else None.
    """

    margins: Tensor
    input: Box
    relu_inputs: tuple[Box, ...] = ()
    upper: Tensor | None = None


@dataclass(frozen=True)
class BoundedBatch:
    """What a loss gets to see: tensors only, and only those that its ``needs`` declare.

    Attributes:
        labels: (B,) int64.
        clean: logits on the images, (B, K), or None.
        adversarial: logits on the attacked images, (B, K), or None.
        margins: per bound method, lower bounds on f_y - f_j, (B, K-1).
        scheduled: the loss's own :meth:`expressive_losses.losses.base.Loss.scheduled` numbers: python's, or scalars
            on the device.
        x_adv: the attacked images, (B, *image), as a leaf that takes a gradient, or None.
        attacked: the region of the attack, or None.
    """

    labels: Tensor
    clean: Tensor | None = None
    adversarial: Tensor | None = None
    margins: Mapping[str, Tensor] = field(default_factory=dict)
    scheduled: Mapping[str, float | Tensor] = field(default_factory=dict)
    x_adv: Tensor | None = None
    attacked: Box | None = None


def specification(labels: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the matrices C with (C f)_j = f_y - f_j over the classes j != y, ascending; (B, K-1, K).

    Args:
        labels: (B,) int64 in [0, K).
        classes: K.
    """
    eye = torch.eye(classes, device=labels.device, dtype=dtype)
    others = other_classes(labels, classes)
    return eye[labels].unsqueeze(1) - eye[others]


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Return the classes that are not the label, ascending; (B, K-1) int64."""
    index = torch.arange(classes - 1, device=labels.device).expand(len(labels), -1)
    return index + (index >= labels.unsqueeze(1)).long()


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return f_y - f_j over the classes j != y, ascending; (B, K-1)."""
    others = other_classes(labels, logits.shape[1])
    return logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, others)
