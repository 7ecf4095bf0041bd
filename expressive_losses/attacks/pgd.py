"""Projected gradient descent with sign steps."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field

from expressive_losses.attacks.base import IterativeAttack, Update
from expressive_losses.registry import ATTACKS


@ATTACKS.register("pgd")
class Pgd(IterativeAttack):
    """PGD: repeated sign steps, projected on the box; the best iterate counts.

    Attributes:
        decay_at: shares of the steps, each rounded up to whole ones, after which steps are ``decay`` times as large.
            SABR's attack in training: ``{steps: 8, step_size: 0.5, decay_at: [0.5, 0.8, 0.9]}``.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks"; step relative to the
        half-width of the clipped box and best iterate as in the published Expressive Losses code; decay as in SABR's.
    """

    decay_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    decay: float = Field(default=0.1, gt=0, le=1)

    def new_update(self) -> Update:
        return torch.sign

    def size_of(self, step: int) -> float:
        """Return step_size * decay ** (number of shares whose steps are done)."""
        done = [math.ceil(share * self.steps - 1e-9) for share in self.decay_at]  # 0.7 * 10 is a little above 7
        return self.step_size * self.decay ** sum(step >= count for count in done)
