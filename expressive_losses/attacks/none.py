"""No attack: the "adversarial" point is the clean one."""

from __future__ import annotations

from torch import Tensor

from expressive_losses.attacks.base import Attack, Logits, Randomness, Start, starting_point
from expressive_losses.registry import ATTACKS
from expressive_losses.types import Box


@ATTACKS.register("none")
class NoAttack(Attack):
    """Return ``start`` (the clean images) projected on the box, or without it the centre of the box.

    NOTE: the centre is the clean image only where the box is not clipped at 0 or 1, so pass ``start``.
    """

    def __call__(self, logits: Logits, box: Box, labels: Tensor, generator: Randomness = None, start: Start = None):
        return starting_point(box, start)
