"""Interval bound propagation training."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import KappaLoss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch, Progress


@LOSSES.register("ibp")
class IBP(KappaLoss):
    """(1 - kappa) clean loss + kappa IBP loss (Gowal et al.); kappa moves along the eps ramp.

    Gowal et al. take kappa from 0 to 0.5 or 1 (there: the weight of the clean term, 1 to 0.5 or 0); Shi et al.
    drop the clean term: ``kappa_start = kappa_end = 1``, the default. The other fields are the ablations of
    table 5, and the extra loss on attacked images of their CIFAR-10 8/255 figure.

    Source: paper "On the Effectiveness of Interval Bound Propagation", equation (12), table 5.
    NOTE: the paper has "a softplus loss on each specification"; here they are summed, sum_j softplus(f_j - f_y).
    """

    elision: bool = Field(True, description="merge the last layer with the margins; false: subtract logit bounds")
    specification_loss: Literal["cross_entropy", "softplus"] = "cross_entropy"
    adversarial_weight: float = Field(0.0, ge=0, description="weight of an added cross-entropy on attacked images")

    @property
    def bound(self) -> str:
        """The bound method."""
        return "ibp" if self.elision else "ibp_logits"

    @property
    def needs(self) -> tuple[str, ...]:
        """Everything that may get weight."""
        return ("clean", *(("adv",) if self.adversarial_weight > 0 else ()), self.bound)

    def needed(self, now: Progress) -> tuple[str, ...]:
        """Return the needs, without the clean logits where they have no weight."""
        return self.needs if self.kappa(now) < 1 else self.needs[1:]

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the mixture and its parts."""
        verified = self.verified_loss(batch.margins[self.bound])
        terms = {"loss": self.mixed(batch, verified), "ibp_loss": verified}
        if self.adversarial_weight > 0:
            terms["adv_loss"] = F.cross_entropy(batch.adversarial, batch.labels)
            terms["loss"] = terms["loss"] + self.adversarial_weight * terms["adv_loss"]
        return terms

    def verified_loss(self, margins: Tensor) -> Tensor:
        """Return the specification loss of lower bounds on the margins, (B, K-1)."""
        if self.specification_loss == "softplus":
            return F.softplus(-margins).sum(1).mean()
        return verified_cross_entropy(margins)
