"""Interval bound propagation training."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import Loss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("ibp")
class IBP(Loss):
    """(1 - kappa) clean loss + kappa IBP loss (Gowal et al.); kappa moves linearly along the eps ramp.

    Gowal et al. take kappa from 0 to 0.5 (there: 1 to 0.5, the weight of the clean term); Shi et al. drop the
    clean term: ``kappa_start = kappa_end = 1``, the default.

    Source: paper "On the Effectiveness of Interval Bound Propagation", equation (12).
    """

    needs: ClassVar[tuple[str, ...]] = ("clean", "ibp")
    kappa_start: float = Field(1.0, ge=0, le=1, description="weight of the IBP loss at the start of the ramp")
    kappa_end: float = Field(1.0, ge=0, le=1, description="weight of the IBP loss from the end of the ramp on")

    def needed(self, eps_fraction: float) -> tuple[str, ...]:
        """Return the IBP bounds, and the clean logits while they have weight."""
        return self.needs if self.kappa(eps_fraction) < 1 else ("ibp",)

    def kappa(self, eps_fraction: float) -> float:
        """Return the weight of the IBP loss."""
        return self.kappa_start + (self.kappa_end - self.kappa_start) * eps_fraction

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the mixture and its parts."""
        kappa = self.kappa(batch.eps_fraction)
        verified = verified_cross_entropy(batch.margins["ibp"])
        if kappa == 1:
            return {"loss": verified}
        clean = F.cross_entropy(batch.clean, batch.labels)
        return {"loss": (1 - kappa) * clean + kappa * verified, "ibp_loss": verified}
