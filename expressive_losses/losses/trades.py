"""TRADES: the clean loss, and how far an attack moves the prediction."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import Loss
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("trades")
class Trades(Loss):
    """Clean cross-entropy + weight * KL(prediction on the image || prediction on the attacked image).

    Its attack maximises the same divergence: ``attack: {name: pgd, objective: kl}``.

    Source: Zhang et al. (2019), "Theoretically principled trade-off between robustness and accuracy", equation
        (5); there the weight is 1 / lambda.
    """

    needs: ClassVar[tuple[str, ...]] = ("clean", "adv")
    weight: float = Field(6.0, ge=0, description="of the divergence")

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the sum and the divergence."""
        clean, adversarial = F.log_softmax(batch.clean, 1), F.log_softmax(batch.adversarial, 1)
        divergence = F.kl_div(adversarial, clean, reduction="batchmean", log_target=True)
        loss = F.nll_loss(clean, batch.labels) + self.weight * divergence
        return {"loss": loss, "divergence": divergence}
