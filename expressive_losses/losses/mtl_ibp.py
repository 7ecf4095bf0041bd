"""MTL-IBP: a convex combination of losses."""

import torch.nn.functional as F
from torch import Tensor

from expressive_losses.losses.base import ExpressiveLoss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("mtl_ibp")
class MTLIBP(ExpressiveLoss):
    """(1 - alpha) adversarial loss + alpha verified loss.

    Source: paper "Expressive Losses", equation (8).
    """

    def robust(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the combined loss and its two parts."""
        adversarial = F.cross_entropy(batch.adversarial, batch.labels)
        verified = verified_cross_entropy(self.verified_margins(batch))
        loss = (1 - self.alpha) * adversarial + self.alpha * verified
        return {"loss": loss, "adv_loss": adversarial, "ibp_loss": verified}
