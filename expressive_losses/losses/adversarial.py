"""Adversarial training."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from expressive_losses.losses.base import Loss
from expressive_losses.registry import LOSSES
from expressive_losses.types import BoundedBatch


@LOSSES.register("adversarial")
class Adversarial(Loss):
    """Cross-entropy on attacked images (Madry et al. 2018), by default of seven steps of a quarter of the radius."""

    needs: ClassVar[tuple[str, ...]] = ("adv",)
    defaults: ClassVar[Mapping[str, Any]] = {"attack": {"name": "pgd", "steps": 7, "step_size": 0.25}}

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the mean cross-entropy at the adversarial points."""
        return {"loss": F.cross_entropy(batch.adversarial, batch.labels)}
