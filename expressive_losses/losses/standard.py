"""Training without robustness."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from expressive_losses.losses.base import Loss
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("standard")
class Standard(Loss):
    """Cross-entropy on clean images."""

    needs: ClassVar[tuple[str, ...]] = ("clean",)

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the mean cross-entropy."""
        return {"loss": F.cross_entropy(batch.clean, batch.labels)}
