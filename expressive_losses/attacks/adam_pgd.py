"""Projected ascent with Adam's steps."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from expressive_losses.attacks.base import IterativeAttack, Update
from expressive_losses.registry import ATTACKS


@ATTACKS.register("adam_pgd")
class AdamPgd(IterativeAttack):
    """PGD with Adam in place of sign steps: x <- clamp(x + step_size * half_width * m_hat / sqrt(v_hat)).

    Attributes:
        beta1, beta2: decay of the first and second moment.

    Source: the "7 steps of PGD with Adam and a learning rate of 0.1" of Gowal et al.'s Madry baseline.
    NOTE: that learning rate is in pixel units; here ``step_size`` is relative, so divide it by eps.
    """

    steps: int = Field(default=7, ge=1)
    step_size: float = Field(default=1.0, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)

    def new_update(self) -> Update:
        m = v = 0.0
        t = 0

        def update(gradient: Tensor) -> Tensor:
            nonlocal m, v, t
            t += 1
            m = self.beta1 * m + (1 - self.beta1) * gradient
            v = self.beta2 * v + (1 - self.beta2) * gradient.square()
            m_hat, v_hat = m / (1 - self.beta1**t), v / (1 - self.beta2**t)
            return m_hat / v_hat.sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)

        return update
