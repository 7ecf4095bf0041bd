"""CROWN-IBP training."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import Loss, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("crown_ibp")
class CrownIBP(Loss):
    """(1 - kappa) clean loss + kappa loss of margins mixed from CROWN-IBP (beta) and IBP (1 - beta); beta falls
    along the ramp.

    Both weights move linearly from their start to their end while eps rises. The papers write kappa for the
    weight of the clean term; here, as in paper "Expressive Losses", it is the weight of the verified one.

    Source: paper "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", equation (9).
    """

    needs: ClassVar[tuple[str, ...]] = ("clean", "ibp", "crown_ibp")
    kappa_start: float = Field(1.0, ge=0, le=1, description="weight of the verified loss at the start of the ramp")
    kappa_end: float = Field(1.0, ge=0, le=1, description="weight of the verified loss from the end of the ramp on")
    beta_start: float = Field(1.0, ge=0, le=1, description="weight of the CROWN-IBP margins at the start of the ramp")
    beta_end: float = Field(0.0, ge=0, le=1, description="weight of the CROWN-IBP margins from the end of the ramp on")

    def weights(self, eps_fraction: float) -> tuple[float, float]:
        """Return (kappa, beta)."""
        kappa = self.kappa_start + (self.kappa_end - self.kappa_start) * eps_fraction
        return kappa, self.beta_start + (self.beta_end - self.beta_start) * eps_fraction

    def needed(self, eps_fraction: float) -> tuple[str, ...]:
        """Return only what has weight: CROWN-IBP bounds cost several IBP passes."""
        kappa, beta = self.weights(eps_fraction)
        weight = {"clean": 1 - kappa, "ibp": 1 - beta, "crown_ibp": beta}
        return tuple(need for need in self.needs if weight[need] > 0)

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the mixture and its verified part."""
        kappa, beta = self.weights(batch.eps_fraction)
        margins = sum(w * batch.margins[m] for m, w in (("crown_ibp", beta), ("ibp", 1 - beta)) if w > 0)
        verified = verified_cross_entropy(margins)
        clean = F.cross_entropy(batch.clean, batch.labels) if kappa < 1 else 0.0
        return {"loss": (1 - kappa) * clean + kappa * verified, "verified_loss": verified}
