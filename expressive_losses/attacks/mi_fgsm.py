"""Momentum iterative fast gradient sign method."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from expressive_losses.attacks.base import IterativeAttack, Update, per_sample
from expressive_losses.registry import ATTACKS


@ATTACKS.register("mi_fgsm")
class MiFgsm(IterativeAttack):
    """PGD with momentum: m <- momentum * m + g / ||g||_1 per sample, then a step along sign(m).

    Attributes:
        momentum: mu; 0 gives PGD.

    Source: Dong et al., "Boosting adversarial attacks with momentum", algorithm 1 (mu = 1).
    """

    momentum: float = Field(default=1.0, ge=0)

    def new_update(self) -> Update:
        m: Tensor | None = None

        def update(gradient: Tensor) -> Tensor:
            nonlocal m
            norm = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
            g = gradient / per_sample(norm, gradient)
            m = g if m is None else self.momentum * m + g
            return m.sign()

        return update
