"""What a training method is: declared needs, and terms computed from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from expressive_losses.registry import Plugin
from expressive_losses.types import BoundedBatch, Box, margins_of


class Loss(Plugin):
    """A training loss. It sees tensors, never a network: everything it needs is declared and computed for it in
    one order.

    Attributes:
        needs: of "clean" (logits with gradient), "adv" (adversarial logits), "ibp", "crown_ibp", "crown"
            (margin bounds).
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def needed(self, eps_fraction: float) -> tuple[str, ...]:
        """Return what is needed at this point of the ramp; :attr:`needs` unless a term has weight 0 there."""
        return self.needs

    def region(self, box: Box, attacked: Box, adversarial: Tensor | None, radius: float) -> Box:
        """Return the region to bound: the whole box, unless the method bounds a part of it (SABR).

        Args:
            box: around the images, of the training radius.
            attacked: the region of the attack, whose radius (pixel units) is ``radius``.
            adversarial: the attacked images, (B, *image).
        """
        return box

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return named scalar terms; ``"loss"`` is what is minimised, the others are logged."""
        raise NotImplementedError

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return what must survive a resume; empty for a loss without memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_dict`."""


def verified_cross_entropy(margins: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of the worst case: of logits [0, -margins] with the first as the true class.

    Cross-entropy depends on logit differences only and increases in each f_j - f_y, so on lower bounds of the
    margins it is an upper bound of the worst-case loss; on exact margins it is the cross-entropy.

    Args:
        margins: (lower bounds on) f_y - f_j, (B, K-1).

    Source: paper "Expressive Losses", equation (5), assumption 2.1.
    """
    logits = F.pad(-margins, (1, 0))
    return F.cross_entropy(
        logits, torch.zeros(len(margins), dtype=torch.long, device=margins.device), reduction=reduction
    )


class ExpressiveLoss(Loss):
    """A loss between the adversarial one (alpha 0) and the verified one (alpha 1), increasing in alpha.

    Source: paper "Expressive Losses", definition 3.1.
    """

    needs: ClassVar[tuple[str, ...]] = ("adv", "ibp")

    def adversarial_margins(self, batch: BoundedBatch) -> Tensor:
        """Return f_y - f_j at the attacked images, (B, K-1)."""
        return margins_of(batch.adversarial, batch.labels)
