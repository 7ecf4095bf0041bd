"""SABR: bounds over a small box around the adversarial point."""

from torch import Tensor

from expressive_losses.losses.base import ExpressiveLoss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch, Box


@LOSSES.register("sabr")
class SABR(ExpressiveLoss):
    """Verified loss over a box of alpha times the radius around the adversarial point (Mueller et al. 2023; there
    lambda).

    Source: paper "Expressive Losses", equation (6).
    """

    def region(self, box: Box, attacked: Box, adversarial: Tensor | None, radius: float) -> Box:
        """Return the small box, inside the attacked region."""
        return attacked.shrink(self.alpha, adversarial, radius)

    def robust(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the verified loss over the small box."""
        return {"loss": verified_cross_entropy(self.verified_margins(batch))}
