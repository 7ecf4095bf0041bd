"""Exp-IBP: a convex combination of log-losses."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import ExpressiveLoss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("exp_ibp")
class ExpIBP(ExpressiveLoss):
    """adversarial loss ^ (1 - alpha) * verified loss ^ alpha, on batch means (as published) or per sample.

    Source: the ICLR 2024 version of "Expressive Losses" and its code, which exponentiates batch means; the
    per-sample form (then averaged) is never larger.
    """

    average: Literal["batch", "sample"] = Field("batch", description="exponents on batch means, or on each sample")

    @property
    def separable(self) -> bool:
        """Whether the exponents are on each sample."""
        return self.average == "sample"

    def robust(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the product and its two factors."""
        reduction = "mean" if self.average == "batch" else "none"
        adversarial = F.cross_entropy(batch.adversarial, batch.labels, reduction=reduction)
        verified = verified_cross_entropy(self.verified_margins(batch), reduction=reduction)
        loss = (_power(adversarial, 1 - self.alpha) * _power(verified, self.alpha)).mean()
        return {"loss": loss, "adv_loss": adversarial.mean(), "ibp_loss": verified.mean()}


def _power(value: Tensor, exponent: float) -> Tensor:
    """Return value ** exponent; a cross-entropy may underflow to 0, where the power has no finite gradient."""
    return value.clamp(min=1e-30) ** exponent
