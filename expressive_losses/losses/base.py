"""What a training method is: declared needs, terms computed from tensors, and how their gradient is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from expressive_losses.distributed import add_gradients
from expressive_losses.registry import EPS_SCHEDULES, Plugin, plugin_field
from expressive_losses.schedules import EpsSchedule
from expressive_losses.types import BoundedBatch, Box, Progress, margins_of

#: Bounds that training can differentiate through.
TrainingBound = Literal["ibp", "crown_ibp"]
#: Fields worth tuning, with their ranges.
SearchSpace = Mapping[str, Mapping[str, float | bool]]
#: Terms that the training step adds to a loss.
REGULARIZERS = ("shi", "l1")


class Loss(Plugin):
    """A training loss. It sees tensors, never a network: everything it needs is declared and computed for it in
    one order.

    Attributes:
        needs: all that it may need, of "clean" (logits with gradient), "adv" (adversarial logits), "x_adv" (the
            attacked images as a leaf that takes a gradient) and margin bounds: "ibp", "ibp_logits" (IBP without
            elision of the last layer), "crown_ibp", "crown_ibp_fused" (CROWN-IBP with loss fusion).
        separable: whether the loss is a mean over samples, so that a batch may be worked off in parts.
        search_space: fields worth tuning: ``{"alpha": {"low": 1e-3, "high": 1.0, "log": True}}``.
        defaults: what a config of this method contains unless it says otherwise, above all its attack.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    separable: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}

    def needed(self, now: Progress) -> tuple[str, ...]:
        """Return what is needed at this point of the run; :attr:`needs` unless a term has weight 0 there."""
        return self.needs

    def scheduled(self, now: Progress) -> dict[str, float]:
        """Return the numbers, by name, that change along the run: weights, thresholds. Most losses have none.

        :meth:`__call__` and :meth:`backward` find them in the batch, and nowhere else: on a GPU they are scalars on the
        device there, so that one captured step (:mod:`expressive_losses.capture`) serves all points of the run. What
        is computed may depend on the run through :meth:`needed` alone.
        """
        return {}

    def region(self, box: Box, attacked: Box, adversarial: Tensor | None, radius: float | Tensor) -> Box:
        """Return the region to bound: the whole box, unless the method bounds a part of it (SABR).

        Args:
            box: around the images, of the training radius.
            attacked: the region of the attack, whose radius (pixel units) is ``radius``.
            adversarial: the attacked images, (B, *image).
        """
        return box

    def bound_options(self) -> dict[str, float]:
        """Return options of the bounds; see :meth:`expressive_losses.bounds.BoundedNetwork.bounds`."""
        return {}

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return named scalar terms; ``"loss"`` is what is minimised, the others are logged."""
        raise NotImplementedError

    def ramps(self) -> dict[str, EpsSchedule]:
        """Return the loss's own schedules by their keys in a config: they must be through by the end of the run."""
        return {}

    def memory(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the tensors that the loss carries from step to step, at the start of training; most need none.

        The trainer keeps them, and they are in its checkpoints.
        """
        return {}

    def backward(
        self,
        batch: BoundedBatch,
        terms: dict[str, Tensor],
        parameters: Sequence[Tensor],
        memory: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Add to the parameters' ``.grad``; return more scalars to log.

        Args:
            batch: what :meth:`__call__` got.
            terms: what it returned, the regularisers, and ``"total"`` (the loss plus the regularisers).
            parameters: those that are trained.
            memory: updated in place; see :meth:`memory`.
        """
        terms["total"].backward()
        add_gradients([parameter.grad for parameter in parameters])
        return {}


def verified_cross_entropy(margins: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of the worst case: of logits [0, -margins] with the first as the true class.

    Cross-entropy depends on logit differences only and increases in each f_j - f_y, so on lower bounds of the
    margins it is an upper bound of the worst-case loss; on exact margins it is the cross-entropy.

    Args:
        margins: (lower bounds on) f_y - f_j, (B, K-1).

    Source: paper "Expressive Losses", equation (5), assumption 2.1.
    """
    logits = F.pad(-margins, (1, 0))
    return F.cross_entropy(
        logits, torch.zeros(len(margins), dtype=torch.long, device=margins.device), reduction=reduction
    )


def mixed_margins(batch: BoundedBatch) -> Tensor:
    """Return beta CROWN-IBP margins + (1 - beta) IBP margins, or the one that was needed.

    Source: paper "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", equation (9).
    """
    if len(batch.margins) == 1:
        return next(iter(batch.margins.values()))
    beta = batch.scheduled["beta"]
    return beta * batch.margins["crown_ibp"] + (1 - beta) * batch.margins["ibp"]


class KappaLoss(Loss):
    """Base of the methods that mix the clean loss and a verified one, (1 - kappa) clean + kappa verified.

    kappa moves from its start to its end along the eps ramp, or along a schedule of its own.

    NOTE: the papers write kappa for the weight of the clean term; here it is the weight of the verified one.
    """

    search_space: ClassVar[SearchSpace] = {"kappa_end": {"low": 0.25, "high": 1.0}}
    kappa_start: float = Field(1.0, ge=0, le=1, description="weight of the verified loss at the start of the ramp")
    kappa_end: float = Field(1.0, ge=0, le=1, description="weight of the verified loss from the end of the ramp on")
    kappa_schedule: plugin_field(EPS_SCHEDULES, optional=True) = Field(
        None, description="progress of kappa, an eps schedule; null: that of eps"
    )

    def kappa(self, now: Progress) -> float:
        """Return the weight of the verified loss."""
        schedule = self.kappa_schedule
        moved = now.eps_fraction if schedule is None else schedule.fraction(now.step, now.clock)
        return self.kappa_start + (self.kappa_end - self.kappa_start) * moved

    def ramps(self) -> dict[str, EpsSchedule]:
        """Return kappa's, where it has one."""
        return {} if self.kappa_schedule is None else {"method.kappa_schedule": self.kappa_schedule}

    def scheduled(self, now: Progress) -> dict[str, float]:
        """Return kappa."""
        return {"kappa": self.kappa(now)}

    def mixed(self, batch: BoundedBatch, verified: Tensor) -> Tensor:
        """Return the mixture; only the verified loss where the clean logits have no weight."""
        if batch.clean is None:
            return verified
        kappa = batch.scheduled["kappa"]
        return (1 - kappa) * F.cross_entropy(batch.clean, batch.labels) + kappa * verified


class ExpressiveLoss(Loss):
    """A loss between the adversarial one (alpha 0) and the verified one (alpha 1), increasing in alpha.

    A subclass gives :meth:`robust`. Its bound may be any that training can differentiate through, and the
    clean loss may be mixed in: robust_weight robust loss + (1 - robust_weight) clean loss (CTBench).

    Source: paper "Expressive Losses", definition 3.1.
    """

    search_space: ClassVar[SearchSpace] = {"alpha": {"low": 1e-3, "high": 1.0, "log": True}}
    alpha: float = Field(0.5, ge=0, le=1, description="0: adversarial loss, 1: verified loss")
    bound: TrainingBound = Field("ibp", description="method of the verified margins")
    robust_weight: float = Field(1.0, gt=0, le=1, description="the rest is the weight of the clean loss")

    @property
    def needs(self) -> tuple[str, ...]:
        """Adversarial logits, the bound, and the clean logits if they have weight."""
        return (*(("clean",) if self.robust_weight < 1 else ()), "adv", self.bound)

    def robust(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the terms of the method itself, with ``"loss"``."""
        raise NotImplementedError

    def __call__(self, batch: BoundedBatch) -> dict[str, Tensor]:
        """Return the terms, the clean loss mixed into ``"loss"``."""
        terms = self.robust(batch)
        if self.robust_weight < 1:
            clean = F.cross_entropy(batch.clean, batch.labels)
            terms["loss"] = self.robust_weight * terms["loss"] + (1 - self.robust_weight) * clean
        return terms

    def verified_margins(self, batch: BoundedBatch) -> Tensor:
        """Return lower bounds on f_y - f_j by the chosen method, (B, K-1)."""
        return batch.margins[self.bound]

    def adversarial_margins(self, batch: BoundedBatch) -> Tensor:
        """Return f_y - f_j at the attacked images, (B, K-1)."""
        return margins_of(batch.adversarial, batch.labels)
