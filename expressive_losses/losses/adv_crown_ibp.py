"""AdvCROWN-IBP: AdvIBP with tighter bounds during the ramp."""

from typing import ClassVar

from torch import Tensor

from expressive_losses.losses.adv_ibp import AdvIBP
from expressive_losses.losses.base import mixed_margins
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch, Progress


@LOSSES.register("adv_crown_ibp")
class AdvCrownIBP(AdvIBP):
    """AdvIBP whose L_ibp is, during the eps ramp, the loss of CROWN-IBP margins (beta, from 1 to 0) mixed with IBP.

    Source: paper "Adversarial Training and Provable Robustness: A Tale of Two Objectives", section on AdvCROWN-IBP;
        beta falls along the ramp as in paper CROWN-IBP, which it refers to.
    """

    needs: ClassVar[tuple[str, ...]] = ("adv", "x_adv", "ibp", "crown_ibp")

    def needed(self, now: Progress) -> tuple[str, ...]:
        """Return the needs, without the bound that has no weight."""
        beta = 1 - now.eps_fraction
        unused = {"ibp": beta == 1, "crown_ibp": beta == 0}
        return tuple(need for need in self.needs if not unused.get(need, False))

    def scheduled(self, now: Progress) -> dict[str, float]:
        """Return AdvIBP's numbers and beta."""
        return {**super().scheduled(now), "beta": 1 - now.eps_fraction}

    def margins(self, batch: BoundedBatch) -> Tensor:
        """Return the mixed margins, (B, K-1)."""
        return mixed_margins(batch)
