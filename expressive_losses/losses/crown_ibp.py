"""CROWN-IBP training."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import KappaLoss, mixed_margins, verified_cross_entropy
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch, Progress


@LOSSES.register("crown_ibp")
class CrownIBP(KappaLoss):
    """(1 - kappa) clean loss + kappa loss of margins mixed from CROWN-IBP (beta) and IBP (1 - beta); beta falls
    along the ramp.

    kappa of the paper's three settings (there the weight of the clean term): 0 to 0 is here 1 to 1, 1 to 0.5 is
    0 to 0.5, 1 to 0 is 0 to 1. Where it keeps beta at 1 (CIFAR-10, 2/255): ``beta_end = 1``.

    Source: paper "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", equation (9).
    """

    needs: ClassVar[tuple[str, ...]] = ("clean", "ibp", "crown_ibp")
    beta_start: float = Field(1.0, ge=0, le=1, description="weight of the CROWN-IBP margins at the start of the ramp")
    beta_end: float = Field(0.0, ge=0, le=1, description="weight of the CROWN-IBP margins from the end of the ramp on")

    def beta(self, now: Progress) -> float:
        """Return the weight of the CROWN-IBP margins."""
        return self.beta_start + (self.beta_end - self.beta_start) * now.eps_fraction

    def needed(self, now: Progress) -> tuple[str, ...]:
        """Return only what has weight: CROWN-IBP bounds cost several IBP passes."""
        weight = {"clean": 1 - self.kappa(now), "ibp": 1 - self.beta(now), "crown_ibp": self.beta(now)}
        return tuple(need for need in self.needs if weight[need] > 0)

    def scheduled(self, now: Progress) -> dict[str, float]:
        """Return kappa and beta."""
        return {**super().scheduled(now), "beta": self.beta(now)}

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the mixture and its verified part."""
        verified = verified_cross_entropy(mixed_margins(batch))
        return {"loss": self.mixed(batch, verified), "verified_loss": verified}
