"""One training step: the order in which a batch is evaluated lives here and nowhere else.

With BatchNorm the order changes the result. It is: clean logits (train mode) -> attack (eval mode) ->
adversarial logits (train mode) -> bounds, whose BatchNorm statistics are those that the policy names -> loss.

BatchNorm policies (``training.bn_statistics``):
    adversarial: the bounds use the batch statistics of the last forward pass, the adversarial one where there
        is one, with gradient (the published Expressive Losses code; the default, since the golden numbers and
        published figures are its).
    clean: the bounds use the clean batch's statistics, with gradient (the text of paper "Expressive Losses",
        appendix E.2).
    clean_frozen: attack, adversarial logits and bounds all use the clean batch's statistics, without gradient
        (CTBench).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from expressive_losses.attacks.base import Attack
from expressive_losses.bounds import (
    TRAINING_METHODS,
    BatchStatistics,
    BoundedNetwork,
    use_statistics,
)
from expressive_losses.bounds.statistics import batch_norms
from expressive_losses.config import TrainingConfig
from expressive_losses.distributed import counted_once, gathered
from expressive_losses.errors import UserError
from expressive_losses.losses.base import Loss
from expressive_losses.regularizers import l1_norm, shi_regularizer
from expressive_losses.types import BoundedBatch, Bounds, Box, Clock, Progress

#: What a loss may need, see :class:`expressive_losses.losses.base.Loss`.
NEEDS: tuple[str, ...] = ("clean", "adv", "x_adv", *TRAINING_METHODS)
#: Radius (pixel units) at which the regulariser's bounds are taken while the schedule's radius is still 0, as
#: published.
WARMUP_EPS = 1e-6


@dataclass(frozen=True)
class Radii:
    """The radii of one step in pixel units, and where in the run it is.

    Attributes:
        bounded: of the bounds; 0 in the warm-up.
        attacked: of the attack; > 0 in an adversarial warm-up.
        fraction: of the ramp, in [0, 1].
        step, clock, ramp_end: see :class:`expressive_losses.types.Progress`.
        numbers: :func:`numbers_of` this step as scalars on the device, if it is to be captured: then nothing else here
            has an effect but on the :func:`structure_of` the step.
    """

    bounded: float
    attacked: float
    fraction: float
    step: int = 0
    clock: Clock = Clock(1, 1)
    ramp_end: int = 0
    numbers: Mapping[str, Tensor] | None = None

    @property
    def warmup(self) -> bool:
        """Whether the ramp has not begun: training is on clean images then, or on attacked ones."""
        return self.bounded == 0

    @property
    def now(self) -> Progress:
        """What a loss is told."""
        return Progress(self.fraction, self.step, self.clock, self.ramp_end)


def structure_of(loss: Loss, radii: Radii, config: TrainingConfig) -> Hashable:
    """Return what decides which operations a step consists of: two steps of one structure differ in numbers only."""
    return _needs(loss, radii), radii.warmup, _regularized(loss, radii, config)


def numbers_of(loss: Loss, radii: Radii) -> dict[str, float]:
    """Return, by name, the numbers of a step that come from schedules.

    "bounded" and "attacked" (radii in pixel units), "fraction" (of the ramp), and the loss's own.

    Raises:
        UserError: the loss calls one of its numbers like those, or like the learning rate.
    """
    step = {"bounded": radii.bounded or WARMUP_EPS, "attacked": radii.attacked, "fraction": radii.fraction}
    own = loss.scheduled(radii.now)
    if taken := sorted(own.keys() & {*step, "lr"}):
        raise UserError(f"loss '{loss.name}': scheduled() may not return '{taken[0]}', each step has one; rename it")
    return {**own, **step}


def evaluate_batch(*arguments, **options) -> dict[str, Tensor]:
    """Return only the terms of :func:`forward_batch`."""
    return forward_batch(*arguments, **options)[1]


def forward_batch(
    network: BoundedNetwork,
    loss: Loss,
    attack: Attack,
    x: Tensor,
    labels: Tensor,
    radii: Radii,
    config: TrainingConfig,
    generator: torch.Generator | None = None,
    statistics: BatchStatistics | None = None,
) -> tuple[BoundedBatch, dict[str, Tensor]]:
    """Return what the loss saw, and the named scalars; ``"total"`` (loss + regularisers) carries the gradient.

    Args:
        x: (B, *image) in pixel units.
        labels: (B,) int64.
        radii: of this step.
        generator: randomness of the attack; ``None``: torch's global one.
        statistics: those of the whole batch, from :func:`clean_statistics`, when these images are a part of it
            (policy clean_frozen); then they are used for the clean logits too.
    """
    needs, numbers = _needs(loss, radii), radii.numbers or numbers_of(loss, radii)
    if statistics is None:
        clean, statistics = _clean(network, x, needs, config.bn_statistics)
    else:
        with use_statistics(network, statistics):
            clean = network(x)
    box = Box.around(x, numbers["bounded"])
    region, adversarial, x_adv, attacked = box, None, None, None
    if "adv" in needs:
        attacked = Box.around(x, numbers["attacked"])
        frozen = statistics if config.bn_statistics == "clean_frozen" else None
        with network.frozen(frozen) as logits:
            x_adv = attack(logits, attacked, labels, generator, start=x)
        x_adv.requires_grad_("x_adv" in needs)
        adversarial, statistics = _adversarial(network, x_adv, statistics, config.bn_statistics)
        if not radii.warmup:
            region = loss.region(box, attacked, x_adv, numbers["attacked"])
    regularized = _regularized(loss, radii, config)
    bounds = _bounds(network, loss, region, labels, needs, regularized, statistics)
    margins = {method: found.margins for method, found in bounds.items()}
    margins = {method: gathered(own) for method, own in margins.items()}
    labels, clean = gathered(labels), gathered(clean)
    seen = clean if "clean" in needs else None
    batch = BoundedBatch(labels, seen, gathered(adversarial), margins, numbers, x_adv, attacked)
    terms = _warmup_terms(batch) if radii.warmup else _terms_of(loss, batch)
    shi = bounds if regularized else {}
    proven = "verified" if type(loss).region is Loss.region and not loss.bound_options() else "small_box"
    accuracies = _accuracies(batch, clean, proven)
    return batch, _with_regularizers(network, terms, shi, numbers["fraction"], config) | accuracies


@torch.no_grad()
def clean_statistics(network: BoundedNetwork, x: Tensor) -> BatchStatistics:
    """Return BatchNorm's statistics, if there is any, over a whole batch of images, and update the running ones."""
    network.train()
    return network.train_logits(x)[1] if batch_norms(network) else {}


def _needs(loss: Loss, radii: Radii) -> tuple[str, ...]:
    if not radii.warmup:
        return loss.needed(radii.now)
    return ("adv",) if radii.attacked > 0 else ("clean",)


def _warmup_terms(batch: BoundedBatch) -> dict[str, Tensor]:
    """Return the cross-entropy on the images, or on the attacked ones in an adversarial warm-up."""
    logits = batch.clean if batch.adversarial is None else batch.adversarial
    return {"loss": F.cross_entropy(logits, batch.labels)}


def _terms_of(loss: Loss, batch: BoundedBatch) -> dict[str, Tensor]:
    """Return what the loss does; a plug-in that forgets the term to minimise is told so."""
    terms = loss(batch)
    minimised = terms.get("loss") if isinstance(terms, dict) else None
    if not isinstance(minimised, Tensor) or minimised.dim() > 0:
        got = ", ".join(f"'{name}'" for name in terms) if isinstance(terms, dict) else type(terms).__name__
        shape = f" of shape {tuple(minimised.shape)}" if isinstance(minimised, Tensor) else ""
        expected = "expected a dict of scalars with 'loss', which is minimised"
        raise UserError(f"loss '{loss.name}': {expected}, got {got}{shape}")
    return terms


def _clean(network, x, needs, policy) -> tuple[Tensor, BatchStatistics]:
    """The clean forward pass, with a gradient only where something will use it."""
    network.train()
    last = "adv" not in needs
    if policy == "adversarial" and not last:  # only BatchNorm's running statistics and the accuracy come from this pass
        with torch.set_grad_enabled("clean" in needs):
            return network.train_logits(x)[0], {}
    with torch.set_grad_enabled("clean" in needs or policy != "clean_frozen"):
        logits, statistics = network.train_logits(x)
    if policy == "clean_frozen":
        statistics = {name: (mean.detach(), variance.detach()) for name, (mean, variance) in statistics.items()}
    return logits, statistics


def _adversarial(network, x_adv, statistics, policy) -> tuple[Tensor, BatchStatistics]:
    """The adversarial forward pass and the statistics that the bounds are to use."""
    if policy == "clean_frozen":
        with use_statistics(network, statistics):
            return network(x_adv), statistics
    logits, own = network.train_logits(x_adv)
    return logits, own if policy == "adversarial" else statistics


def _regularized(loss: Loss, radii: Radii, config: TrainingConfig) -> bool:
    """Return whether Shi et al.'s regulariser has weight: on the ramp, of methods that bound something."""
    return config.shi.weight > 0 and radii.fraction < 1 and bool(set(loss.needs) & set(TRAINING_METHODS))


def _bounds(network, loss, region, labels, needs, regularized, statistics) -> dict[str, Bounds]:
    methods = [need for need in needs if need in TRAINING_METHODS]
    if regularized and not methods:
        methods = ["ibp"]
    return network.bounds_of(region, labels, methods, statistics, regularized, **loss.bound_options())


def _with_regularizers(network, terms, bounds, fraction, config) -> dict[str, Tensor]:
    total = terms["loss"]
    if bounds:
        first = next(iter(bounds.values()))
        terms["shi"] = shi_regularizer(first, fraction, config.shi.weight, config.shi.tol)
        total = total + terms["shi"]
    if config.l1 > 0:
        terms["l1"] = counted_once(config.l1 * l1_norm(network))
        total = total + terms["l1"]
    return {**terms, "total": total}


@torch.no_grad()
def _accuracies(batch: BoundedBatch, clean: Tensor, proven: str) -> dict[str, Tensor]:
    """Fractions of the batch: correct on clean images, under the training attack, and by the bounds.

    Args:
        proven: what the last is called: only of bounds over the whole box is it "verified".
    """
    found = {"natural": (clean.argmax(1) == batch.labels).float().mean()}
    if batch.adversarial is not None:
        found["adversarial"] = (batch.adversarial.argmax(1) == batch.labels).float().mean()
    if batch.margins:
        best = torch.stack(torch.broadcast_tensors(*batch.margins.values())).amax(0)
        found[proven] = (best > 0).all(1).float().mean()
    return found
