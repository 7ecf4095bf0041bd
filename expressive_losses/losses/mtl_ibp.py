"""MTL-IBP: a convex combination of losses."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import ExpressiveLoss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("mtl_ibp")
class MTLIBP(ExpressiveLoss):
    """(1 - alpha) adversarial loss + alpha IBP loss.

    Source: paper "Expressive Losses", equation (8).
    """

    alpha: float = Field(0.5, ge=0, le=1, description="0: adversarial loss, 1: IBP loss")

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the combined loss and its two parts."""
        adversarial = F.cross_entropy(batch.adversarial, batch.labels)
        verified = verified_cross_entropy(batch.margins["ibp"])
        loss = (1 - self.alpha) * adversarial + self.alpha * verified
        return {"loss": loss, "adv_loss": adversarial, "ibp_loss": verified}
