"""SABR: bounds over a small box around the adversarial point."""

from pydantic import Field, model_validator
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

    relu_shrink: float = Field(1.0, gt=0, le=1, description="factor on the upper bound of unstable ReLUs; 0.8")

    @model_validator(mode="after")
    def _shrinks_intervals_only(self):
        if self.relu_shrink < 1 and self.bound != "ibp":
            raise ValueError(f"relu_shrink: only with bound 'ibp', not with '{self.bound}'")
        return self

    def region(self, box: Box, attacked: Box, adversarial: Tensor | None, radius: float | Tensor) -> Box:
        """Return the small box, inside the attacked region."""
        return attacked.shrink(self.alpha, adversarial, radius)

    def bound_options(self) -> dict[str, float]:
        """Return the factor, which only interval bounds of plain chains know, if there is one."""
        return {"relu_shrink": self.relu_shrink} if self.relu_shrink < 1 else {}

    def robust(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the verified loss over the small box."""
        return {"loss": verified_cross_entropy(self.verified_margins(batch))}
