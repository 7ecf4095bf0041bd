"""CC-IBP: a convex combination inside the loss."""

from torch import Tensor

from expressive_losses.losses.base import ExpressiveLoss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("cc_ibp")
class CCIBP(ExpressiveLoss):
    """Cross-entropy of (1 - alpha) adversarial margins + alpha verified margins.

    Source: paper "Expressive Losses", equation (7).
    """

    def robust(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the loss of the combined margins."""
        margins = (1 - self.alpha) * self.adversarial_margins(batch) + self.alpha * self.verified_margins(batch)
        return {"loss": verified_cross_entropy(margins)}
