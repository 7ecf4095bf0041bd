"""Fast gradient sign method with random start."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from expressive_losses.attacks.base import Attack, Logits, Randomness, Start, starting_point, uniform
from expressive_losses.registry import ATTACKS
from expressive_losses.types import Box


@ATTACKS.register("fgsm")
class Fgsm(Attack):
    """One sign step from a random point of the box: x + step_size * half_width * sign(gradient), projected.

    Attributes:
        step_size: relative to the elementwise half-width of the box; the default jumps to a corner from
            anywhere.
        random_start: start uniformly in the box, not at ``start``.

    Source: Wong et al., "Fast is better than free"; the one-step attack of paper "Expressive Losses",
        appendix.
    """

    step_size: float = Field(default=10.0, gt=0)
    random_start: bool = True

    def __call__(self, logits: Logits, box: Box, labels: Tensor, generator: Randomness = None, start: Start = None):
        x = uniform(box, generator) if self.random_start else starting_point(box, start)
        labels = self.targets(logits, box, labels, start)
        _, gradient = self.value_and_gradient(logits, x, labels)
        return box.clamp(x + self.step_size * box.half_width * gradient.sign())
