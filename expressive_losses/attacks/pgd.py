"""Projected gradient descent with sign steps."""

from __future__ import annotations

import torch

from expressive_losses.attacks.base import IterativeAttack, Update
from expressive_losses.registry import ATTACKS


@ATTACKS.register("pgd")
class Pgd(IterativeAttack):
    """PGD: repeated sign steps, projected on the box; the best iterate counts.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks"; step relative to
        the half-width of
    the clipped box and best iterate as in the published Expressive Losses code.
    """

    def new_update(self) -> Update:
        return torch.sign
