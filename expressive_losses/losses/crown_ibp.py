"""CROWN-IBP training."""

import torch
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

    With many classes CROWN-IBP bounds on all margins cost as much as that many passes. ``fused`` bounds the sum of
    their exponentials in one, and mixes that sum with IBP's.

    Source: paper "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", equation (9); ``fused``:
        Xu et al., "Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond", and its code.
    """

    beta_start: float = Field(1.0, ge=0, le=1, description="weight of the CROWN-IBP margins at the start of the ramp")
    beta_end: float = Field(0.0, ge=0, le=1, description="weight of the CROWN-IBP margins from the end of the ramp on")

    fused: bool = Field(False, description="loss fusion: one bound on the loss, for hundreds of classes")

    @property
    def bound(self) -> str:
        """The bound method that has weight beta."""
        return "crown_ibp_fused" if self.fused else "crown_ibp"

    @property
    def needs(self) -> tuple[str, ...]:
        """Clean logits, and the margins of both kinds."""
        return ("clean", "ibp", self.bound)

    def beta(self, now: Progress) -> float:
        """Return the weight of the CROWN-IBP margins."""
        return self.beta_start + (self.beta_end - self.beta_start) * now.eps_fraction

    def needed(self, now: Progress) -> tuple[str, ...]:
        """Return only what has weight: CROWN-IBP bounds cost several IBP passes."""
        weight = {"clean": 1 - self.kappa(now), "ibp": 1 - self.beta(now), self.bound: self.beta(now)}
        return tuple(need for need in self.needs if weight[need] > 0)

    def scheduled(self, now: Progress) -> dict[str, float]:
        """Return kappa and beta."""
        return {**super().scheduled(now), "beta": self.beta(now)}

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the mixture and its verified part."""
        margins = mixed_exponentials(batch) if self.fused else mixed_margins(batch)
        verified = verified_cross_entropy(margins)
        return {"loss": self.mixed(batch, verified), "verified_loss": verified}


def mixed_exponentials(batch: BoundedBatch) -> Tensor:
    """Return margins m, (B, K), whose sum of exp(-m) is beta that of loss fusion and (1 - beta) that of IBP.

    A factor of an exponential is a logarithm off its margin. Only the margins that were needed, where one of both has
    no weight.
    """
    if len(batch.margins) == 1:
        return next(iter(batch.margins.values()))
    beta = torch.as_tensor(batch.scheduled["beta"])
    fused, ibp = batch.margins["crown_ibp_fused"], batch.margins["ibp"]
    return torch.cat([fused - beta.log(), ibp - (1 - beta).log()], 1)
