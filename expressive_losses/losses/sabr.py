"""SABR: bounds over a small box around the adversarial point."""

from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import ExpressiveLoss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch, Box


@LOSSES.register("sabr")
class SABR(ExpressiveLoss):
    """IBP loss over a box of alpha times the radius around the adversarial point (Mueller et al. 2023; there lambda).

    Source: paper "Expressive Losses", equation (6).
    """

    alpha: float = Field(0.5, ge=0, le=1, description="lambda: 0 the adversarial point, 1 the whole box")

    def region(self, box: Box, attacked: Box, adversarial: Tensor | None, radius: float) -> Box:
        """Return the small box, inside the attacked region."""
        return attacked.shrink(self.alpha, adversarial, radius)

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the IBP loss over the small box."""
        return {"loss": verified_cross_entropy(batch.margins["ibp"])}
