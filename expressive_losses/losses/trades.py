"""TRADES: the clean loss, and how far an attack moves the prediction."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.losses.base import Loss, SearchSpace
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("trades")
class Trades(Loss):
    """Clean cross-entropy + weight * KL(prediction on the image || prediction on the attacked image).

    Its attack maximises the same divergence: by default ten steps of a quarter of the radius, as its code on CIFAR-10.

    Source: Zhang et al. (2019), "Theoretically principled trade-off between robustness and accuracy", equation
        (5); there the weight is 1 / lambda.
    """

    needs: ClassVar[tuple[str, ...]] = ("clean", "adv")
    search_space: ClassVar[SearchSpace] = {"weight": {"low": 1.0, "high": 10.0}}
    defaults: ClassVar[Mapping[str, Any]] = {
        "attack": {"name": "pgd", "steps": 10, "step_size": 0.25, "objective": "kl"}
    }
    weight: float = Field(6.0, ge=0, description="of the divergence")

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the sum and the divergence."""
        clean, adversarial = F.log_softmax(batch.clean, 1), F.log_softmax(batch.adversarial, 1)
        divergence = F.kl_div(adversarial, clean, reduction="batchmean", log_target=True)
        loss = F.nll_loss(clean, batch.labels) + self.weight * divergence
        return {"loss": loss, "divergence": divergence}
